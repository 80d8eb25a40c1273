"""The one call shape that the loop knows: component name + named arrays -> named arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from parure.manifest import Component, Manifest, TensorSpec

Array = NDArray[Any]
FloatArray = NDArray[np.float32]
Arrays = Mapping[str, Array]


class Executor(Protocol):
    """Runs components. A context manager: leaving it releases sessions and connections."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle that this executor runs."""

    @property
    def identity(self) -> str:
        """The identity of the bundle: the sha256 of its manifest."""

    @property
    def name(self) -> str:
        """How components are reached: `onnxruntime`, `triton-grpc`, `triton-http`."""

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        """Run one component on a batch.

        `inputs` holds every input of the component, [B, ...] each, in the manifest's types. `wanted` names the outputs
        to return, None: all; what is not wanted crosses no process border. Raises
        `ServerError` when a server fails and `InvalidReply` when an output is not what the manifest says.
        """

    def close(self) -> None:
        """Release what this executor holds; it cannot be used afterwards."""


def wanted_outputs(component: Component, wanted: Collection[str] | None) -> tuple[TensorSpec, ...]:
    """The outputs that a call of `component` returns, in the manifest's order."""
    return tuple(tensor for tensor in component.outputs if wanted is None or tensor.name in wanted)
