"""The fewest GPUs that keep the promise, and the settings with which they do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from parure.errors import ParureError
from parure_bench.plan.batcher import Batching
from parure_bench.plan.quantities import spoken
from parure_bench.plan.simulate import Host, Offered, Server, simulate
from parure_bench.plan.times import Times
from parure_bench.plan.workload import Workload
from parure_bench.statistics import Estimate
from parure_triton.loop_model.meeting import MET

DELAYS = (0.001, 0.0, 0.005)  # without any, the first of several calls that come together goes alone
_HALVINGS = 6
_SCOUTED, _SCOUTS = 400, 3  # pictures of a simulation that looks around, and how many there are
_GROWTH = 1.1
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # 95 %


class Unattainable(ParureError):
    """No number of GPUs keeps the promise."""


@dataclass(frozen=True)
class Setting:
    """What the repository is written with: `--max-batch`, `--at-work`, `--queue-delay` (here in seconds)."""

    max_batch: int
    at_work: int
    delay: float


@dataclass(frozen=True)
class Promise:
    """`rate` pictures a second in all, 99 % of them within `p99` seconds."""

    rate: float
    p99: float


@dataclass(frozen=True)
class Ground:
    """What a plan stands on. `demand`: the share of the device that one execution of a component can use."""

    times: Times
    workload: Workload
    host: Host = field(default_factory=Host)
    demand: float = 1.0
    instances: int = 1
    waiting: int = 64

    def server(self, setting: Setting) -> Server:
        def batching(name: str) -> Batching:
            delay = setting.delay if name in MET else 0.0
            return Batching(setting.max_batch, (setting.max_batch,), delay, self.instances, self.demand)

        return Server({name: batching(name) for name in self.workload.counts()}, setting.at_work, self.waiting)

    def capacity(self, max_batch: int) -> float:
        """Pictures a second that the device cannot exceed: every batch full, nothing ever waiting."""
        counts = self.workload.counts()
        work = sum(
            count * min(self.times.curves[name].median(b) / b for b in range(1, max_batch + 1))
            for name, count in counts.items()
        )
        work *= self.demand
        work += sum(counts.values()) * self.host.seconds_per_call * self.host.demand
        return 1 / work


@dataclass(frozen=True)
class Trial:
    """The highest rate on one GPU at which a setting kept the promise in the search; 0: not even alone."""

    setting: Setting
    rate: float


@dataclass(frozen=True)
class Confirmed:
    """Several seeded runs on `gpus`, each of which gets its share of the pictures at random."""

    gpus: int
    p50: Estimate
    p99: Estimate
    utilisation: float
    unet_batch: float
    refused: float
    latencies: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """`short`: the most GPUs that were seen not to suffice; `alone`: latency of a picture on an idle one, seconds."""

    promise: Promise
    setting: Setting
    confirmed: Confirmed
    short: Confirmed | None
    alone: float
    trials: tuple[Trial, ...]


def plan(
    ground: Ground, promise: Promise, *, max_batches: Sequence[int], replications: int = 5, pictures: int = 1000,
    seed: int = 0, tried: Callable[[Trial], None] = lambda trial: None,
) -> Plan:  # fmt: skip
    """Search the settings, then confirm the best with more pictures. Raises `Unattainable`."""
    alone = lone_latency(ground)
    if promise.p99 < alone:
        raise Unattainable(
            f"p99 of {spoken(promise.p99)} cannot be met with any number of GPUs: a picture alone on an idle one takes "
            f"{spoken(alone)} ({ground.times.source}); ask for more, take fewer steps, or a faster device"
        )
    trials: list[Trial] = []
    for setting in _settings(max_batches, trials):
        best = max((trial.rate for trial in trials), default=0.0)
        trials.append(Trial(setting, _highest_rate(ground, setting, promise.p99, best, seed)))
        tried(trials[-1])
    best_trial = max(trials, key=lambda trial: trial.rate)
    if best_trial.rate == 0:
        raise Unattainable(
            f"p99 of {spoken(promise.p99)} is met by no setting even at a trickle, though a picture alone takes "
            f"{spoken(alone)}: pictures that meet by chance slow each other; ask for more"
        )

    def confirm(gpus: int) -> Confirmed:
        return confirmed(ground, best_trial.setting, promise, gpus, replications, pictures, seed + 100)

    found, short = _fewest(confirm, math.ceil(promise.rate / best_trial.rate), promise.p99)
    return Plan(promise, best_trial.setting, found, short, alone, tuple(trials))


def _fewest(confirm: Callable[[int], Confirmed], start: int, p99: float) -> tuple[Confirmed, Confirmed | None]:
    """The fewest GPUs whose mean p99 keeps the promise, to 2 %, and the most that were seen to fail."""
    found, short = confirm(start), None
    while found.p99.value > p99:
        found, short = confirm(math.ceil(found.gpus * _GROWTH) if found.gpus > 1 else 2), found
    while short is None and found.gpus > 1:
        fewer = confirm(max(1, math.floor(found.gpus / _GROWTH)))
        found, short = (fewer, None) if fewer.p99.value <= p99 else (found, fewer)
    while short is not None and found.gpus - short.gpus > max(1, 0.02 * found.gpus):
        between = confirm((found.gpus + short.gpus) // 2)
        found, short = (between, short) if between.p99.value <= p99 else (found, between)
    return found, short


def lone_latency(ground: Ground) -> float:
    """Of a picture that is alone: a cached ornament where 99 % have one, else one that must be encoded."""
    calls = ground.workload.calls(cached=ground.workload.hits >= 0.99)
    return sum(ground.times.curves[name].median(1) + ground.host.seconds_per_call for name in calls)


def _settings(max_batches: Sequence[int], trials: Sequence[Trial]) -> Iterator[Setting]:
    """Large batches first, since they mostly win; then the queue delays of the best."""
    for max_batch in sorted(max_batches, reverse=True):
        for at_work in dict.fromkeys((max_batch, 2 * max_batch)):
            yield Setting(max_batch, at_work, DELAYS[0])
    best = max(trials, key=lambda trial: trial.rate)
    if best.rate and best.setting.max_batch > 1:
        for delay in DELAYS[1:]:
            yield replace(best.setting, delay=delay)


def _highest_rate(ground: Ground, setting: Setting, p99: float, to_beat: float, seed: int) -> float:
    """By halving; 0 where `to_beat` is not beaten by 1 %."""
    server, high = ground.server(setting), ground.capacity(setting.max_batch)

    def kept(rate: float) -> bool:
        seeds = range(seed, seed + _SCOUTS)
        outcomes = simulate(
            ground.times, ground.workload, server, Offered(_SCOUTED, rate=rate), ground.host, seeds, 1.5 * p99
        )
        return float(np.mean([outcome.quantile(0.99) for outcome in outcomes])) <= p99

    low = to_beat * 1.01 if to_beat else 0.02 * high
    if low >= high or not kept(low):
        return 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def confirmed(
    ground: Ground, setting: Setting, promise: Promise, gpus: int, replications: int, pictures: int, seed: int
) -> Confirmed:
    outcomes = simulate(
        ground.times, ground.workload, ground.server(setting), Offered(pictures, rate=promise.rate / gpus),
        ground.host, range(seed, seed + replications), 4 * promise.p99,
    )  # fmt: skip
    return Confirmed(
        gpus=gpus,
        p50=_mean([outcome.quantile(0.5) for outcome in outcomes]),
        p99=_mean([outcome.quantile(0.99) for outcome in outcomes]),
        utilisation=float(np.mean([outcome.utilisation for outcome in outcomes])),
        unet_batch=float(np.mean([outcome.batches.get("unet", 0.0) for outcome in outcomes])),
        refused=sum(outcome.refused for outcome in outcomes) / sum(outcome.arrived for outcome in outcomes),
        latencies=tuple(latency for outcome in outcomes for latency in outcome.latencies),
    )


def _mean(values: Sequence[float]) -> Estimate:
    """Of independent runs, with its interval from Student's t; endless where one run did not keep up."""
    if not np.isfinite(values).all():
        return Estimate(math.inf, math.inf, math.inf)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, mean, mean)
    margin = _STUDENT.get(len(values), 2.0) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - margin, mean + margin)
