"""Components in this process, on OpenVINO: often the quicker choice on CPUs, above all in bf16 where they have it."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from typing import Any, Literal

from parure.bundle import Bundle
from parure.errors import InputError, InvalidReply
from parure.executor import Array, Arrays, wanted_outputs
from parure.manifest import Manifest, Precision

Hint = Literal["f32", "bf16"]


class OpenVinoExecutor:
    """Runs a bundle's graphs, each compiled for one batch size when that is first needed: fixed shapes run quicker.

    Calls of one executor follow each other. `f32` is exact; `bf16` is not, and is never chosen unasked.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, hint: Hint = "f32") -> None:
        """`threads` per component; by default the cores that this process may use. Raises `InputError` where
        OpenVINO is not installed, or has no kernels for the bundle."""
        try:
            import openvino
        except ImportError as error:
            raise InputError(
                "backend openvino needs openvino, which is not installed; run `pip install 'parure[openvino]'`, or "
                "choose backend onnxruntime"
            ) from error
        if bundle.manifest.precision is Precision.BF16:
            raise InputError(
                "the bundle is bf16, whose graphs are made for engines; with backend openvino-bf16 it is OpenVINO that "
                "computes in bf16: give it an fp32 bundle"
            )
        self.bundle = bundle
        self.name = "openvino" if hint == "f32" else f"openvino-{hint}"
        self._settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self._core = openvino.Core()
        self._requests: dict[tuple[str, int], Any] = {}
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def identity(self) -> str:
        return self.bundle.identity

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        batch = len(next(iter(inputs.values())))
        with self._lock:
            request = self._requests.get((component, batch))
            if request is None:
                request = self._requests[component, batch] = self._compiled(component, batch)
            found = request.infer(dict(inputs), share_inputs=True)
            return {t.name: found[t.name].copy() for t in wanted_outputs(self.manifest.component(component), wanted)}

    def close(self) -> None:
        with self._lock:
            self._requests.clear()

    def _compiled(self, component: str, batch: int) -> Any:
        graph = self.bundle.graph(component)
        inputs = self.manifest.component(component).inputs
        try:
            model = self._core.read_model(str(graph))
            model.reshape({tensor.name: [batch, *tensor.shape] for tensor in inputs})
            return self._core.compile_model(model, "CPU", self._settings).create_infer_request()
        except RuntimeError as error:
            raise InvalidReply(f"OpenVINO cannot load {graph} for a batch of {batch}: {error}") from error
