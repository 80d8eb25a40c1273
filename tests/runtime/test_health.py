"""What a probe makes of a component that takes no call: full is not dead."""

from __future__ import annotations

from typing import Any

import pytest

from parure.errors import DeadlineExceeded, ParureError, ServerError, ServerUnavailable
from parure.health import _component
from parure.manifest import Component, TensorSpec

COMPONENT = Component(
    name="unet",
    graph="onnx/unet.onnx",
    inputs=(TensorSpec(name="latents", dtype="float32", shape=(4, 8, 8)),),
    outputs=(TensorSpec(name="noise", dtype="float32", shape=(4, 8, 8)),),
    parameters=0,
    flops=0,
)


class Server:
    """Refuses every call with `error`; `alive`: whether it says that it lives."""

    def __init__(self, error: ParureError, alive: bool) -> None:
        self.error, self.alive = error, alive

    def run(self, component: str, inputs: Any) -> Any:
        raise self.error

    def live(self) -> bool:
        return self.alive


@pytest.mark.parametrize(
    ("error", "alive", "passed"),
    [
        (ServerUnavailable("Exceeds maximum queue size"), True, True),
        (ServerUnavailable("connection refused"), False, False),
        (ServerError("not healthy"), True, False),
        (DeadlineExceeded("no answer"), True, False),
    ],
)
def test_a_component_whose_queue_is_full_is_not_taken_for_dead(error: ParureError, alive: bool, passed: bool) -> None:
    server: Any = Server(error, alive)
    finding = _component(server, COMPONENT, server)
    assert finding.passed is passed and bool(finding.remedy) is not passed
