"""Every call ends soon after its deadline, whatever the server does. How soon is measured by `parure_bench.deadlines`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
import stamina

from parure.errors import DeadlineExceeded
from parure.shared_tensors import SharedMemory
from parure.triton import TritonExecutor
from parure_bench.stopped import stopped
from parure_triton.server import EmbeddedServer

DEADLINE = 0.5
MARGIN = 5.0  # for a busy machine: who waits for the server itself takes longer
SLOW = 9  # as in models/misbehaving.py: longer than the deadline of a call
WAYS = ["grpc", "http", "grpc shared", "http shared"]
T = TypeVar("T")


def unet_inputs(way: int = 0) -> dict[str, np.ndarray]:
    return {"latents": np.ones((1, 4, 8, 8), np.float32), "timestep": np.full(1, way, np.float32)}


@pytest.fixture(params=WAYS)
def open_executor(request: pytest.FixtureRequest, misbehaving: EmbeddedServer) -> Callable[[], TritonExecutor]:
    scheme, _, shared = request.param.partition(" ")
    memory = SharedMemory(least=1) if shared else None
    url = getattr(misbehaving.addresses, scheme)
    return lambda: TritonExecutor(url, deadline=DEADLINE, shared_memory=memory)


def ends_in_time(call: Callable[[], object]) -> None:
    since = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=rf"within {DEADLINE} s"):
        call()
    assert time.monotonic() - since < DEADLINE + MARGIN


def patiently(call: Callable[[], T]) -> T:
    """What was asked for meanwhile comes first, and machines are busy."""
    return stamina.retry(on=DeadlineExceeded, attempts=20, wait_initial=0.5, wait_max=0.5)(call)()


def check_answers(executor: TritonExecutor) -> None:
    outputs = patiently(lambda: executor.run("unet", unet_inputs()))
    assert np.array_equal(outputs["noise"], unet_inputs()["latents"])


def test_every_call_to_a_stopped_server_ends(
    open_executor: Callable[[], TritonExecutor], misbehaving: EmbeddedServer
) -> None:
    with patiently(open_executor) as executor:
        check_answers(executor)
        with stopped(misbehaving.pid):
            for call in (
                lambda: executor.run("unet", unet_inputs()),
                lambda: executor.run("unet", {k: np.repeat(v, 3, axis=0) for k, v in unet_inputs().items()}),
                lambda: executor.solver("ddim"),
                executor.server_version,
                open_executor,
            ):
                ends_in_time(call)
        check_answers(executor)


def test_closing_does_not_wait_for_a_stopped_server(
    open_executor: Callable[[], TritonExecutor], misbehaving: EmbeddedServer
) -> None:
    executor = patiently(open_executor)
    with stopped(misbehaving.pid):
        since = time.monotonic()
        executor.close()
        assert time.monotonic() - since < 1 + MARGIN
    time.sleep(0.3)
    patiently(open_executor).close()  # sweeps what the server had no time to forget


def test_a_call_to_a_slow_model_ends(open_executor: Callable[[], TritonExecutor]) -> None:
    with patiently(open_executor) as executor:
        ends_in_time(lambda: executor.run("unet", unet_inputs(SLOW)))
        check_answers(executor)
