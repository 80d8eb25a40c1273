"""A plan's prediction of a server that was measured: how far it is off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from parure.errors import RecordError
from parure.tryon_wire import AT_WORK_PARAMETER, TRYON_MODEL, WAITING_PARAMETER
from parure_bench.plan.batcher import Batching
from parure_bench.plan.simulate import Host, Offered, Outcome, Server, simulate
from parure_bench.plan.times import Times
from parure_bench.plan.workload import Workload
from parure_bench.record import Record, Series
from parure_bench.serve.levels import REQUEST, scheduled, throughput
from parure_bench.serve.settings import SERVED

PICTURES = 600
_MEETS = "mask_head"


@dataclass(frozen=True)
class Compared:
    """One level of load: what was measured, what the simulation says. Seconds, and pictures a second."""

    load: str
    measured: dict[str, float]
    predicted: dict[str, float]

    def error(self, figure: str) -> float:
        """Predicted / measured - 1."""
        return self.predicted[figure] / self.measured[figure] - 1


@dataclass(frozen=True)
class Check:
    """`host` is what a picture spends around its calls, taken from the level of one caller: that level is fitted."""

    host: Host
    levels: tuple[Compared, ...]
    fitted: str

    def median_error(self, figure: str) -> float:
        """Of the absolute errors of the levels that were not fitted."""
        errors = [abs(level.error(figure)) for level in self.levels if level.load != self.fitted]
        return float(np.median(errors)) if errors else float("nan")


def check(times: Times, record: Record, *, seed: int = 0) -> Check:
    """Predict every level of the server loop with warm ornaments in `record`. Raises `RecordError`."""
    if record.kind != "serve":
        raise RecordError(
            f"a record of kind {record.kind} cannot be checked against; expected one of `parure bench serve`"
        )
    levels = [
        series
        for series in record.find(REQUEST, loop="server", ornaments="warm")
        if series.figures.get("complete") and series.samples
    ]
    single = next((series for series in levels if series.labels.get("concurrency") == 1), None)
    if single is None:
        raise RecordError(
            "the record has no level of one caller, which says what surrounds the calls; measure with --concurrency 1,..."
        )
    cores = record.environment.cores
    on_gpu = bool(record.environment.gpus)
    server, workload = server_of(record, cores, on_gpu), workload_of(single)
    times.require(set(workload.counts()))
    host = fitted_host(times, workload, server, single, 0.0 if on_gpu else 1 / cores, seed)
    return Check(host, tuple(_levels(times, workload, server, host, levels, seed)), load_of(single))


def server_of(record: Record, cores: int, on_gpu: bool) -> Server:
    """As the server told its settings. An execution demands the whole device: the GPU, or all cores."""
    served = {str(series.labels["model"]): series.figures for series in record.find(SERVED)}
    if TRYON_MODEL not in served:
        raise RecordError("the record is not of a server with the server loop; plan and check are about that loop")
    places = served.pop(TRYON_MODEL)

    limited = {name: figures["threads"] for name, figures in served.items() if 0 < figures.get("threads", 0) < cores}
    if limited and not on_gpu:
        name, threads = next(iter(limited.items()))
        raise RecordError(
            f"the server runs {name} with {threads:g} of {cores} cores, and component times are measured with all of them; "
            "serve a repository without --threads"
        )
    batching = {
        name: Batching(
            int(figures["max_batch"]),
            tuple(int(size) for key, size in figures.items() if key.startswith("preferred.")),
            figures["queue_delay"],
            int(figures["instances"]),
        )
        for name, figures in served.items()
    }
    return Server(batching, int(places[AT_WORK_PARAMETER]), int(places[WAITING_PARAMETER]))


def workload_of(single: Series) -> Workload:
    """Steps and passes, from the calls that a picture made."""
    refreshes = round(single.figures[f"calls.{_MEETS}"])
    unets = round(single.figures["calls.unet"])
    steps = round(single.figures["steps"])
    return Workload(steps, max(1, unets // steps), 1.0, refreshes)


def fitted_host(times: Times, workload: Workload, server: Server, single: Series, demand: float, seed: int) -> Host:
    """What is left of a lone picture's latency, spread over its calls."""
    bare = simulate(times, workload, server, Offered(30, concurrency=1), Host(), [seed])[0]
    calls = len(workload.calls(cached=True))
    left = float(np.median(single.samples)) - bare.quantile(0.5)
    return Host(max(left, 0.0) / calls, demand)


def load_of(series: Series) -> str:
    if "rate" in series.labels:
        return f"{series.labels['rate']:g}/s"
    return f"{series.labels['concurrency']} at once"


def _levels(
    times: Times, workload: Workload, server: Server, host: Host, levels: Sequence[Series], seed: int
) -> Iterator[Compared]:
    for series in levels:
        measured = {name: series.figures[name] for name in ("throughput", "p50", "p99")}
        if "mean_unet_batch" in series.figures:
            measured["mean_unet_batch"] = series.figures["mean_unet_batch"]
        offered = _offered(series)
        seeds = range(seed, seed + min(50, max(1, PICTURES // offered.pictures)))
        outcomes = simulate(times, workload, replace(server, waiting=10**9), offered, host, seeds)
        yield Compared(load_of(series), measured, _predicted(outcomes, offered.concurrency or None))


def _offered(series: Series) -> Offered:
    """The very arrivals that were measured; or callers."""
    if "rate" in series.labels:
        due = scheduled(float(series.labels["rate"]), series.figures)
        return Offered(len(due), due=due)
    return Offered(PICTURES // 3, concurrency=int(series.labels["concurrency"]))


def _predicted(outcomes: Sequence[Outcome], callers: int | None) -> dict[str, float]:
    """Means over the runs."""
    values = {
        "throughput": [throughput(outcome.ends, outcome.latencies, callers) for outcome in outcomes],
        "p50": [outcome.quantile(0.5) for outcome in outcomes],
        "p99": [outcome.quantile(0.99) for outcome in outcomes],
        "mean_unet_batch": [outcome.batches["unet"] for outcome in outcomes],
    }
    return {name: float(np.mean(each)) for name, each in values.items()}
