"""Components as the server's other models, called from within the server (business logic scripting)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from parure.errors import Cancelled, ServerError, ServerUnavailable
from parure.executor import Array, Arrays, wanted_outputs
from parure.manifest import Component, Manifest, TensorSpec
from parure.triton import decoded, wire_shape
from parure_triton.loop_model.meeting import Meeting

FEATURES = "features"
LAST = "vae_decoder"


class OnDevice:
    """A tensor in the memory of a GPU. The loop passes features on and never looks into them."""

    def __init__(self, tensor: Any, dtype: Any, shape: tuple[int, ...]) -> None:
        self.tensor, self.dtype, self.shape = tensor, np.dtype(dtype), shape

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def astype(self, dtype: Any, copy: bool = True) -> OnDevice:
        if np.dtype(dtype) != self.dtype:
            raise TypeError(f"a tensor on a GPU is {self.dtype} and cannot be made {np.dtype(dtype)} here")
        return self

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """`np.zeros_like` of it, for guidance: zeros on the host, once per picture."""
        return np.zeros(self.shape, self.dtype) if function is np.zeros_like else NotImplemented


@dataclass(frozen=True, eq=False)
class BlsExecutor:
    """Runs components for one picture. `check` raises `Cancelled` once nobody waits for the picture any more."""

    manifest: Manifest
    identity: str
    check: Callable[[], None]
    request_id: str
    parameters: dict[str, str] = field(default_factory=dict)
    features_on_gpu: bool = False
    meeting: Meeting = field(default_factory=Meeting)

    @property
    def name(self) -> str:
        return "triton-bls"

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        """As `Executor.run`."""
        self.check()
        spec = self.manifest.component(component)
        chosen = wanted_outputs(spec, wanted)
        batch = len(inputs[spec.inputs[0].name])
        request = pb_utils.InferenceRequest(
            model_name=component,
            requested_output_names=[tensor.name for tensor in chosen],
            inputs=[_tensor(t.name, inputs[t.name], wire_shape(t, batch)) for t in spec.inputs],
            request_id=self.request_id,
            parameters=self.parameters,
            preferred_memory=self._memory(spec),
        )
        response = self._exec(component, request)
        if response.has_error():
            raise _error(component, response.error())
        outputs = {tensor.name(): tensor for tensor in response.output_tensors()}
        return {t.name: _array(outputs.get(t.name), t, batch, component) for t in chosen}

    def close(self) -> None:
        """Tell the others that this picture needs no more steps."""
        self.meeting.leave(self)

    def _exec(self, component: str, request: Any) -> Any:
        if component == LAST:
            self.meeting.leave(self)
        with self.meeting.call(component, self):
            return request.exec()

    def _memory(self, component: Component) -> Any:
        """Features may stay on the GPU that made them; everything else is looked at here."""
        stays = self.features_on_gpu and all(tensor.name == FEATURES for tensor in component.outputs)
        return pb_utils.PreferredMemory(
            pb_utils.TRITONSERVER_MEMORY_GPU if stays else pb_utils.TRITONSERVER_MEMORY_CPU, 0
        )


def _tensor(name: str, value: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(value, OnDevice):
        return pb_utils.Tensor.from_dlpack(name, value.tensor)
    return pb_utils.Tensor(name, np.ascontiguousarray(value).reshape(shape))


def _array(tensor: Any, spec: TensorSpec, batch: int, component: str) -> Any:
    """A copy: the memory of a tensor is the server's, and goes with it."""
    if tensor is not None and not tensor.is_cpu():
        return OnDevice(tensor, spec.dtype, (batch, *spec.shape))
    return decoded(None if tensor is None else tensor.as_numpy(), spec, batch, f"model {component!r}").copy()


def _error(component: str, error: Any) -> Exception:
    message = f"model {component!r} failed: {error.message()}"
    if error.code() == pb_utils.TritonError.CANCELLED:
        return Cancelled(message)
    return (ServerUnavailable if error.code() == pb_utils.TritonError.UNAVAILABLE else ServerError)(message)
