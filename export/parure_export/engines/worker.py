"""Builds one engine in a process of its own: `python -m parure_export.engines.worker`, told by JSON on stdin.

A process each: polygraphy chooses TensorRT or TensorRT-RTX when it is imported, the peak of memory is the engine's
own, and a builder that is stopped leaves nothing behind. What happens is said in JSON lines on stdout.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

from parure.engine import EngineRecord
from parure.errors import EngineError, InputError
from parure.manifest import Frozen
from parure.tensorrt_engine import Log, import_tensorrt, open_engine, refit
from parure_export.engines.attention import decompose_unfused
from parure_export.engines.cache import TimingCache
from parure_export.engines.request import BuildRequest
from parure_export.engines.targets import Flavor

_messages: TextIO = sys.stdout


class Job(Frozen):
    """`shapes`: input name -> shape without the batch; `relative`: a plan to put the weights into, instead of building.

    `inspect`: the GPU that the plan is for is here, so that the finished plan can be opened and looked at.
    """

    request: BuildRequest
    graph: Path
    plan: Path
    shapes: dict[str, tuple[int, ...]]
    timing_cache: Path | None
    relative: Path | None = None
    inspect: bool = False


def main() -> None:
    _keep_stdout_for_messages()
    job = Job.model_validate_json(sys.stdin.read())
    import_tensorrt(job.request.flavor)
    try:
        say("done", **(refitted(job) or build(job)))
    except MemoryError:
        say("failed", kind="memory", message="out of memory", peak_bytes=peak_bytes())
    except OSError as error:
        say("failed", kind="disk", message=str(error), peak_bytes=peak_bytes())
    except BuildFailed as error:
        say("failed", kind="builder", message=str(error), peak_bytes=peak_bytes())


class BuildFailed(Exception):
    """TensorRT cannot make an engine of this graph."""


def build(job: Job) -> dict[str, Any]:
    """Build the plan and write it; returns what the record says of it."""
    import polygraphy.logger
    from polygraphy.backend.trt import Profile, network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    polygraphy.logger.G_LOGGER.module_severity = {"": polygraphy.logger.G_LOGGER.CRITICAL}
    since = time.perf_counter()
    graph = decompose_unfused(job.graph, job.plan.with_suffix(".onnx"))
    log, monitor = _listeners(job.request.flavor)
    try:
        builder, network, _parser = network_from_onnx_path(str(graph), strongly_typed=_strongly_typed(job))
        profile = Profile()
        batches = job.request.profile
        for name, shape in job.shapes.items():
            profile.add(name, *((batch, *shape) for batch in (batches.min, batches.opt, batches.max)))
        config = _config(job, profile, monitor)(builder, network)
        plan = builder.build_serialized_network(network, config)
    except PolygraphyException as error:
        raise BuildFailed(log.text or str(error).strip().splitlines()[-1]) from error
    if plan is None:
        raise BuildFailed(log.text or "the builder gave no reason")
    _write(job.plan, plan)
    if job.timing_cache is not None and (timings := config.get_timing_cache()) is not None:
        TimingCache(job.timing_cache).write(bytes(timings.serialize()))
    return {
        "layers": layer_summary(network),
        "types": type_summary(network),
        "inspected": inspect(job) if job.inspect else None,
        "build_seconds": round(time.perf_counter() - since, 2),
        "peak_bytes": peak_bytes(),
    }


def refitted(job: Job) -> dict[str, Any] | None:
    """The plan made of its relative and this graph's weights; None, and the reason said, where that cannot be."""
    if job.relative is None:
        return None
    since = time.perf_counter()
    relative = EngineRecord.model_validate_json(job.relative.with_suffix(".json").read_bytes())
    try:
        trt = import_tensorrt(job.request.flavor)
        engine = open_engine(trt, job.relative)
        refit(trt, engine, decompose_unfused(job.graph, job.plan.with_suffix(".onnx")))
        settings = engine.create_serialization_config()
        settings.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
        _write(job.plan, engine.serialize_with_config(settings))
    except (EngineError, InputError) as error:
        say("note", message=f"its weights cannot be refitted, so it is built anew: {error}")
        return None
    say("note", message="refitted: the weights were put into an engine that was built before")
    return {
        "layers": relative.layers,
        "types": relative.types,
        "inspected": relative.inspected,
        "refitted_from": relative.key,
        "build_seconds": round(time.perf_counter() - since, 2),
        "peak_bytes": peak_bytes(),
    }


def inspect(job: Job) -> dict[str, int] | None:
    """Layers of the finished plan by type, as the inspector tells; None, and the reason said, where it cannot."""
    trt = import_tensorrt(job.request.flavor)
    try:
        engine = open_engine(trt, job.plan)
    except EngineError as error:
        say("note", message=f"it is built, but cannot be inspected here: {error}")
        return None
    told = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    kinds = (layer.get("LayerType", "unnamed") if isinstance(layer, dict) else "unnamed" for layer in told["Layers"])
    return dict(Counter(kinds).most_common())


def _write(path: Path, plan: Any) -> None:
    try:
        path.write_bytes(plan)
    except OSError as error:
        raise OSError(f"{error.strerror}, {memoryview(plan).nbytes / 1e6:.1f} MB were needed for the plan") from error


def _strongly_typed(job: Job) -> bool | None:
    """TensorRT-RTX and TensorRT 11 know nothing else; TensorRT 10 has to be told."""
    return (job.request.flavor is Flavor.TENSORRT and job.request.flavor_version.startswith("10.")) or None


def _config(job: Job, profile: Any, monitor: Any) -> Any:
    options = job.request.options
    settings: dict[str, Any] = {
        "profiles": [profile],
        "builder_optimization_level": options.level,
        "progress_monitor": monitor,
        "refittable": options.refittable or options.strip or None,
        "strip_plan": options.strip or None,
        "weight_streaming": options.weight_streaming or None,
        "profiling_verbosity": import_tensorrt(job.request.flavor).ProfilingVerbosity.DETAILED,
    }
    if options.workspace is not None:
        pool = import_tensorrt(job.request.flavor).MemoryPoolType.WORKSPACE
        settings["memory_pool_limits"] = {pool: options.workspace}
    if job.request.flavor is Flavor.TENSORRT_RTX:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        capability = job.request.capability
        return CreateConfigRTX(compute_capabilities=None if capability is None else [capability], **settings)
    from polygraphy.backend.trt import CreateConfig

    if job.request.capability is None:
        level = import_tensorrt(job.request.flavor).HardwareCompatibilityLevel.AMPERE_PLUS
        settings["hardware_compatibility_level"] = level
    timings = None if job.timing_cache is None else TimingCache(job.timing_cache).read()
    if timings is not None:
        settings["load_timing_cache"] = io.BytesIO(timings)
    return CreateConfig(**settings)


def _listeners(flavor: Flavor) -> tuple[Log, Any]:
    """The errors that TensorRT logs, through polygraphy as well, and a monitor that says how far it is."""
    from polygraphy.backend.trt import util

    trt: Any = import_tensorrt(flavor)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self.steps[phase_name] = num_steps
                say("progress", phase=phase_name, step=0, steps=num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                say("progress", phase=phase_name, step=step + 1, steps=self.steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    log = Log(trt)
    util.get_trt_logger = lambda: log.adapter
    return log, Monitor()


def layer_summary(network: Any) -> dict[str, int]:
    """Layers of the network by type."""
    names = (str(network.get_layer(i).type).rpartition(".")[2] for i in range(network.num_layers))
    return dict(Counter(names).most_common())


def type_summary(network: Any) -> dict[str, dict[str, int]]:
    """The types that the heavy layers give. A strongly typed network runs in just these."""
    heavy = ("CONVOLUTION", "MATRIX_MULTIPLY", "ATTENTION_OUTPUT", "NORMALIZATION")
    found: dict[str, Counter[str]] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = str(layer.type).rpartition(".")[2]
        if kind in heavy and layer.num_outputs:
            dtype = str(layer.get_output(0).dtype).rpartition(".")[2]
            found.setdefault(kind, Counter())[dtype] += 1
    return {kind: dict(counts) for kind, counts in found.items()}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _keep_stdout_for_messages() -> None:
    """What libraries print goes to stderr; `say` writes to what was stdout."""
    global _messages
    _messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def say(event: str, **content: Any) -> None:
    _messages.write(json.dumps({"event": event, **content}) + "\n")
    _messages.flush()


if __name__ == "__main__":
    main()
