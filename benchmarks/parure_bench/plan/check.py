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
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the time around a call in which a core is busy


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
    """`host` is what a picture spends around its calls; it is taken from the levels `fitted`."""

    host: Host
    levels: tuple[Compared, ...]
    fitted: tuple[str, ...]

    def median_error(self, figure: str) -> float:
        """Of the absolute errors of the levels that were not fitted."""
        errors = [abs(level.error(figure)) for level in self.levels if level.load not in self.fitted]
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
    fitted = [single]
    crowd = max((s for s in levels if "concurrency" in s.labels), key=lambda s: float(s.labels["concurrency"]))
    if not on_gpu and crowd is not single:
        host = fitted_demand(times, workload, server, crowd, host, seed)
        fitted.append(crowd)
    found = tuple(_levels(times, workload, server, host, levels, seed))
    return Check(host, found, tuple(load_of(series) for series in fitted))


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
    """What is left of a lone picture's latency, as seconds of its calls: some of them lie beside others."""

    def median(host: Host) -> float:
        return simulate(times, workload, server, Offered(30, concurrency=1), host, [seed])[0].quantile(0.5)

    bare = median(Host())
    left = max(float(np.median(single.samples)) - bare, 0.0)
    spread = Host(left / len(workload.calls(cached=True)), demand)
    gained = median(spread) - bare
    return replace(spread, seconds_per_call=spread.seconds_per_call * left / gained) if left and gained > 0 else spread


def fitted_demand(times: Times, workload: Workload, server: Server, crowd: Series, host: Host, seed: int) -> Host:
    """How much of that keeps a core busy, from the throughput of the most callers; the rest is waiting."""

    def miss(candidate: Host) -> float:
        offered = _offered(crowd)
        outcome = simulate(times, workload, server, offered, candidate, [seed])[0]
        return abs(throughput(outcome.ends, outcome.latencies, offered.concurrency) - crowd.figures["throughput"])

    return min((Host(host.seconds_per_call, host.demand * share) for share in _SHARES), key=miss)


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
