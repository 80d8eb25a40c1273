"""Components in this process, on the TensorRT engines of a bundle."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from parure.bundle import Bundle
from parure.engine import EngineRecord, open_record, plans, verify_plan
from parure.errors import InputError
from parure.executor import Array, Arrays, wanted_outputs
from parure.host import Gpu, gpus
from parure.manifest import Manifest
from parure.preflight import misfit
from parure.tensorrt_engine import Runner, open_runner

OpenPlan = Callable[[Path, EngineRecord, Path], Runner]


class TensorRtExecutor:
    """Runs a bundle's engines; one is opened when it is first needed. Calls of one executor follow each other."""

    name = "tensorrt"

    def __init__(self, bundle: Bundle, *, open_plan: OpenPlan | None = None, gpu: Gpu | None = None) -> None:
        """Find the engines that this machine's GPU can run; raises `InputError` where a component has none.

        `gpu` and `open_plan` stand for the first GPU of this machine and for TensorRT.
        """
        here = gpu or next(iter(gpus()), None)
        if here is None:
            raise InputError("running engines needs a GPU, and this machine has none; use ONNX Runtime or a server")
        self.bundle = bundle
        self._open_plan = open_plan or open_runner
        self._engines = _usable(bundle, here)
        self._runners: dict[Path, Runner] = {}
        self._lock = threading.Lock()

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def identity(self) -> str:
        return self.bundle.identity

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        """As `Executor.run`, on the engine whose range holds the batch and whose optimum is nearest to it."""
        batch = len(next(iter(inputs.values())))
        plan = route(component, self._engines[component], batch)
        with self._lock:
            if plan not in self._runners:
                record = verify_plan(plan, self.bundle)
                self._runners[plan] = self._open_plan(plan, record, self.bundle.graph(component))
            outputs = self._runners[plan].infer(inputs)
            chosen = wanted_outputs(self.manifest.component(component), wanted)
            return {tensor.name: outputs[tensor.name].copy() for tensor in chosen}

    def close(self) -> None:
        with self._lock:
            while self._runners:
                self._runners.popitem()[1].close()


def route(component: str, engines: Mapping[Path, EngineRecord], batch: int) -> Path:
    """The plan for `batch`: its range holds it, its optimum is nearest, and of equals the narrowest range.

    Raises `InputError` naming the ranges there are.
    """
    fitting = {p: r.batches for p, r in engines.items() if r.batches.min <= batch <= r.batches.max}
    if not fitting:
        ranges = ", ".join(f"{r.batches.min}..{r.batches.max}" for r in engines.values())
        raise InputError(
            f"{component}: no engine takes a batch of {batch}; there are engines for {ranges}; build one with "
            f"`parure build --batch {batch}`"
        )
    return min(fitting, key=lambda p: (abs(fitting[p].opt - batch), fitting[p].max - fitting[p].min))


def _usable(bundle: Bundle, gpu: Gpu) -> dict[str, dict[Path, EngineRecord]]:
    """By component, the engines that `gpu` can run."""
    found: dict[str, dict[Path, EngineRecord]] = {component.name: {} for component in bundle.manifest.components}
    problems: dict[str, str] = {}
    for plan in plans(bundle.root):
        record = open_record(plan)
        if problem := misfit(record, gpu):
            problems[record.component] = f"; {plan.parent.name}/{plan.name} {problem}"
        elif record.component in found:
            found[record.component][plan] = record
    for component, engines in found.items():
        if not engines:
            raise InputError(
                f"bundle {bundle.root} has no engine of {component} for {gpu.name}{problems.get(component, '')}; "
                "build them with `parure build --target local`"
            )
    _one_flavor(record for engines in found.values() for record in engines.values())
    return found


def _one_flavor(records: Iterable[EngineRecord]) -> None:
    """Polygraphy speaks to one flavor a process, chosen by an environment variable before it is imported."""
    flavors = {record.flavor for record in records}
    if len(flavors) > 1:
        raise InputError(f"the bundle's engines are of flavors {', '.join(sorted(flavors))}; keep those of one")
