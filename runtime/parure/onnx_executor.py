"""Components in this process, on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from parure.bundle import Bundle
from parure.errors import InputError, InvalidReply
from parure.executor import Array, Arrays, wanted_outputs
from parure.manifest import Manifest, Precision

# The threads of a component that is done would spin on the cores that the next component computes on.
NO_SPINNING = ("session.intra_op.allow_spinning", "0")


class OnnxExecutor:
    """Runs a bundle's graphs in-process; sessions are made when a component is first needed."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, literal: bool = False) -> None:
        """`threads` per component (intra-op); by default the cores that this process may use. `literal`: see
        `open_session`."""
        self.bundle = bundle
        self._literal = literal
        self._threads = threads or len(os.sched_getaffinity(0))
        self._sessions: dict[str, Any] = {}

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def identity(self) -> str:
        return self.bundle.identity

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        session = self._sessions.get(component)
        if session is None:
            if self.manifest.precision is Precision.BF16:
                raise InputError(
                    "the bundle is bf16, which ONNX Runtime has no kernels for; build engines with `parure build`, or "
                    "export it as fp32 or fp16"
                )
            session = self._sessions[component] = open_session(
                self.bundle.graph(component), self._threads, literal=self._literal
            )
        outputs = [tensor.name for tensor in wanted_outputs(self.manifest.component(component), wanted)]
        return dict(zip(outputs, session.run(outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        self._sessions.clear()


def open_session(graph: Path, threads: int, *, literal: bool = False) -> Any:
    """An ONNX Runtime session on the best provider that this host has, deterministic on CPU.

    `literal` runs the graph node by node as it stands, without ONNX Runtime's rewriting, and holds no memory back.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise InputError(
            "running a bundle in-process needs onnxruntime, which is not installed; "
            "run `pip install 'parure[cpu]'` (or 'parure[gpu]'), or give the URL of a server"
        ) from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(*NO_SPINNING)
    if literal:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [provider for provider in wanted if provider in ort.get_available_providers()]
    try:
        return ort.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:
        raise InvalidReply(f"ONNX Runtime cannot load {graph}: {error}") from error
