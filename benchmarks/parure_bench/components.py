"""Every component alone: latency, throughput, memory, and the share of what the device can do at most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from rich.progress import Progress

from parure.bundle import Bundle
from parure.executor import Arrays, Executor
from parure.manifest import Component, Precision
from parure.tryon import Backend, open_executor
from parure_bench.devices import Device
from parure_bench.memory import peak_bytes
from parure_bench.record import Label, Series
from parure_bench.recording import Run
from parure_bench.sampling import Rounds, interleaved
from parure_bench.statistics import median
from parure_bench.tensors import random_inputs


@dataclass(frozen=True)
class ComponentPlan:
    """What to measure: every one of `components` at every batch size, the `backends` in turns."""

    components: tuple[str, ...]
    batches: tuple[int, ...]
    backends: tuple[Backend, ...]
    rounds: Rounds
    memory: bool = True


def measure_components(
    bundles: Sequence[Bundle], plan: ComponentPlan, device: Device | None, run: Run, bars: Progress
) -> None:
    """Add a series for every component, batch, precision and backend to `run`; `device` gives the limit."""
    ways = {
        f"{bundle.manifest.precision}:{backend}": (bundle, backend) for bundle in bundles for backend in plan.backends
    }
    cells = len(plan.components) * len(plan.batches)
    task = bars.add_task("components", total=cells * len(ways) * (plan.rounds.count + plan.rounds.warmup))
    for name in plan.components:
        for batch in plan.batches:
            executors = {way: open_executor(bundle, None, backend) for way, (bundle, backend) in ways.items()}
            bars.update(task, description=f"{name}, batch {batch}")
            taken = _measure(executors, name, batch, plan.rounds, lambda _: bars.advance(task))
            for way, samples in taken.items():
                bundle, backend = ways[way]
                precision = computes_in(bundle.manifest.precision, backend)
                figures = _figures(bundle.manifest.component(name), batch, samples, device, precision)
                if plan.memory:
                    figures["peak_bytes"] = peak_bytes(bundle.root, backend, name, batch)
                labels: dict[str, Label] = {"batch": batch, "precision": str(precision), "backend": backend}
                run.series.append(Series(name=name, labels=labels, samples=tuple(samples), figures=figures))


def computes_in(stored: Precision, backend: str) -> Precision:
    """The precision that the backend computes in, where it is not the graph's own."""
    return Precision.BF16 if backend == "openvino-bf16" else stored


def _measure(
    executors: dict[str, Executor], name: str, batch: int, rounds: Rounds, advance: Callable[[str], None]
) -> dict[str, list[float]]:
    """Seconds by way. An executor's call ends when its outputs are here: nothing is left to wait for on a device."""

    def call(executor: Executor, inputs: Arrays) -> object:
        return executor.run(name, inputs)

    calls = {}
    for way, executor in executors.items():
        inputs = random_inputs(executor.manifest.component(name), batch)
        calls[way] = partial(call, executor, inputs)
    taken: dict[str, list[float]] = {way: [] for way in executors}
    try:
        for sample in interleaved(calls, rounds, advance=advance):
            taken[sample.name].append(sample.seconds)
    finally:
        for executor in executors.values():
            executor.close()
    return taken


def _figures(
    component: Component, batch: int, samples: Sequence[float], device: Device | None, precision: Precision
) -> dict[str, float]:
    flops = component.flops * batch
    seconds = median(samples).value
    figures = {"flops": float(flops), "per_second": batch / seconds, "flops_per_second": flops / seconds}
    if device is not None:
        figures["share_of_peak"] = flops / seconds / device.peak(precision)
    return figures
