"""One plan, opened: its weights put in where it has none, and a runner for the shapes it takes.

Only a machine with a GPU can open a plan. Hashes are checked before (`parure.engine.verify_plan`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from parure.engine import EngineRecord
from parure.errors import EngineError, InputError
from parure.executor import Array, Arrays

RTX = "tensorrt-rtx"


class Runner(Protocol):
    """One engine with its buffers."""

    def infer(self, inputs: Arrays) -> Mapping[str, Array]:
        """Outputs by name."""

    def close(self) -> None:
        """Free the engine."""


def open_runner(plan: Path, record: EngineRecord, graph: Path) -> Runner:
    """A runner for `plan`; `graph` gives the weights of a plan that has none.

    Raises `InputError` for a flavor that is not installed, `EngineError` where TensorRT refuses the plan.
    """
    trt = import_tensorrt(record.flavor)
    engine = open_engine(trt, plan)
    if record.stripped:
        refit(trt, engine, graph)
    if record.weight_streaming:
        engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
    if record.batches.static:
        return StaticRunner(trt, engine, record)
    return PolygraphyRunner(engine)


def import_tensorrt(flavor: str) -> ModuleType:
    """The module of `flavor`, and polygraphy told to speak to it; that is settled once a process."""
    if flavor == RTX:
        os.environ.setdefault("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    try:
        importlib.import_module("polygraphy")
        return importlib.import_module("tensorrt_rtx" if flavor == RTX else "tensorrt")
    except ImportError as error:
        raise InputError(
            f"engines of flavor {flavor} need {error.name}, which is not installed; run `pip install 'parure[{flavor}]'`"
        ) from error


def open_engine(trt: ModuleType, plan: Path) -> Any:
    """The engine of `plan`; raises `EngineError` with what TensorRT said."""
    logger = Log(trt)
    try:
        runtime = trt.Runtime(logger.adapter)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes()) if runtime else None
    except (RuntimeError, TypeError) as error:
        raise EngineError(f"TensorRT cannot open {plan.name}: {logger.text or error}") from error
    if engine is None:
        raise EngineError(f"TensorRT cannot open {plan.name}: {logger.text or 'it gave no reason'}")
    return engine


def refit(trt: ModuleType, engine: Any, graph: Path) -> None:
    """Put the weights of `graph` into `engine`; raises `EngineError` where not every weight finds its place."""
    logger = Log(trt)
    refitter = trt.Refitter(engine, logger.adapter)
    parser = trt.OnnxParserRefitter(refitter, logger.adapter)
    read = parser.refit_from_file(str(graph))
    missing = list(refitter.get_missing_weights()) if read else []
    if not read or missing or not refitter.refit_cuda_engine():
        reason = f"{len(missing)} weights are missing, first {missing[0]}" if missing else logger.text
        raise EngineError(f"the weights of {graph.name} do not fit the engine: {reason or 'TensorRT gave no reason'}")


class Log:
    """The errors that TensorRT logs, kept instead of printed."""

    def __init__(self, trt: ModuleType) -> None:
        self.messages: list[str] = []
        kept = self.messages

        class Adapter(trt.ILogger):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and "---" not in message:
                    kept.append(" ".join(message.split()))

        self.adapter = Adapter()

    @property
    def text(self) -> str:
        """The first errors: what was looked at, and what was wrong with it."""
        return " ".join(self.messages[:3])[:800]


class PolygraphyRunner:
    """Any batch of the engine's range, on polygraphy's runner."""

    def __init__(self, engine: Any) -> None:
        from polygraphy.backend.trt import TrtRunner

        self._runner: Any = TrtRunner(engine)
        self._runner.activate()

    def infer(self, inputs: Arrays) -> Mapping[str, Array]:
        outputs: Mapping[str, Array] = self._runner.infer(dict(inputs))
        return outputs

    def close(self) -> None:
        self._runner.deactivate()


class StaticRunner:
    """One batch size: buffers are bound once, and all launches of a call are one CUDA graph.

    TensorRT-RTX records the graph itself. For TensorRT, it is captured here, after a first call without it.
    """

    def __init__(self, trt: ModuleType, engine: Any, record: EngineRecord) -> None:
        from polygraphy import cuda

        self._context = _graph_context(trt, engine) if record.flavor == RTX else engine.create_execution_context()
        self._stream = cuda.Stream()
        batch = record.batches.max
        self._inputs, self._outputs = (
            {t.name: cuda.DeviceArray(shape=(batch, *t.shape), dtype=np.dtype(t.dtype)) for t in tensors}
            for tensors in (record.inputs, record.outputs)
        )
        for name, buffer in (self._inputs | self._outputs).items():
            self._context.set_tensor_address(name, buffer.ptr)
        for name, buffer in self._inputs.items():
            self._context.set_input_shape(name, buffer.shape)
        self._captures = record.flavor != RTX
        self._graph: CapturedGraph | None = None

    def infer(self, inputs: Arrays) -> Mapping[str, Array]:
        for name, buffer in self._inputs.items():
            buffer.copy_from(np.ascontiguousarray(inputs[name]), self._stream)
        if self._graph is not None:
            self._graph.launch(self._stream.ptr)
        else:
            self._enqueue()
        outputs = {name: np.empty(buffer.shape, buffer.dtype) for name, buffer in self._outputs.items()}
        for name, buffer in self._outputs.items():
            buffer.copy_to(outputs[name], self._stream)
        self._stream.synchronize()
        if self._captures and self._graph is None:
            self._graph = CapturedGraph(self._stream.ptr, self._enqueue)
        return outputs

    def close(self) -> None:
        if self._graph is not None:
            self._graph.close()
        for buffer in (*self._inputs.values(), *self._outputs.values()):
            buffer.free()
        self._stream.free()
        del self._context

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.ptr):
            raise EngineError("TensorRT could not run the engine; see its log")


def _graph_context(trt: ModuleType, engine: Any) -> Any:
    settings = engine.create_runtime_config()
    settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    return engine.create_execution_context(settings)


class CapturedGraph:
    """The launches that a function puts on a stream, recorded once and launched as one."""

    def __init__(self, stream: int, record: Any) -> None:
        try:
            from cuda.bindings import runtime
        except ImportError as error:
            raise InputError(
                "CUDA graphs need cuda-bindings, which is not installed; run `pip install 'parure[tensorrt]'`"
            ) from error
        self._cuda = runtime
        self._do(runtime.cudaStreamBeginCapture(stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
        record()
        (graph,) = self._do(runtime.cudaStreamEndCapture(stream))
        (self._executable,) = self._do(runtime.cudaGraphInstantiate(graph, 0))
        self._do(runtime.cudaGraphDestroy(graph))

    def launch(self, stream: int) -> None:
        self._do(self._cuda.cudaGraphLaunch(self._executable, stream))

    def close(self) -> None:
        self._do(self._cuda.cudaGraphExecDestroy(self._executable))

    def _do(self, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """What a CUDA call gave beside its status; raises `EngineError` with the status where it failed."""
        status, *values = answer
        if status != self._cuda.cudaError_t.cudaSuccess:
            raise EngineError(f"CUDA failed with {status.name}")
        return tuple(values)
