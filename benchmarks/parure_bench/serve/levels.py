"""One level of load -> one series of the record; the levels of a server -> its curves and their knees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from parure.errors import ServerUnavailable
from parure.tryon import Where
from parure_bench.record import Label, Series
from parure_bench.serve.counters import Counters
from parure_bench.serve.knee import CONCURRENCY_RULE, RATE_RULE, Point, concurrency_knee, rate_knee
from parure_bench.serve.load import Alive, Answer, Ask, Taken, closed_loop, open_loop
from parure_bench.serve.schedule import poisson

REQUEST, KNEE = "request", "knee"
Arrivals = Literal["concurrency", "rate"]
Cache = Literal["warm", "cold"]
SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.15)  # of what the closed loop could take, where no rates are given


@dataclass(frozen=True)
class Extent:
    """How much to measure: `seconds` for each level. `rates` None: shares of the throughput that callers reached."""

    concurrencies: tuple[int, ...]
    rates: tuple[float, ...] | None
    seconds: float
    seed: int


@dataclass(frozen=True)
class Curve:
    """Under which conditions the levels of a curve are measured."""

    loop: Where
    cache: Cache

    @property
    def labels(self) -> dict[str, Label]:
        return {"loop": self.loop, "ornaments": self.cache}


Counts = Callable[[], Counters | None]


@dataclass
class Contender:
    """A curve that is being measured: `ready` is called before each level, and `points` are those so far."""

    curve: Curve
    ask: Ask
    ready: Callable[[], None] = lambda: None
    points: dict[Arrivals, list[Point]] = field(default_factory=lambda: {"concurrency": [], "rate": []})

    def rates(self, extent: Extent) -> list[float]:
        return sorted(_shares(self.points["concurrency"]) if extent.rates is None else extent.rates)


def measured(contenders: Sequence[Contender], alive: Alive, extent: Extent, counts: Counts) -> Iterator[Series]:
    """Every level, then the knees. Ends early with `ServerUnavailable` where the server dies.

    Each level is measured for all contenders before the next one: the drift of a machine meets all of them.
    """
    for concurrency in sorted(extent.concurrencies):
        for one in contenders:
            take = partial(closed_loop, one.ask, concurrency, extent.seconds, alive)
            yield from _measured(one, "concurrency", concurrency, take, counts, {})
    rates = [one.rates(extent) for one in contenders]
    for index in range(max(map(len, rates), default=0)):
        schedule = {"schedule_seconds": extent.seconds, "schedule_seed": float(extent.seed + index)}
        for one, offered in zip(contenders, rates, strict=True):
            if index < len(offered):
                take = partial(open_loop, one.ask, scheduled(offered[index], schedule), alive)
                yield from _measured(one, "rate", offered[index], take, counts, schedule)
    for one in contenders:
        yield from _knees(one)


def _measured(
    one: Contender, by: Arrivals, load: float, take: Callable[[], Taken], counts: Counts, more: Mapping[str, float]
) -> Iterator[Series]:
    one.ready()
    earlier = counts()
    taken = take()
    series = level(one.curve, by, load, taken, {**_difference(counts, earlier, taken), **more})
    yield series
    if taken.died is not None:
        raise ServerUnavailable(f"the server died in mid-run: {taken.died}")
    one.points[by].append(_point(load, series))


def scheduled(rate: float, figures: Mapping[str, float]) -> tuple[float, ...]:
    """The arrivals of a level, from the figures that its series keeps."""
    return poisson(rate, figures["schedule_seconds"], int(figures["schedule_seed"]))


def level(curve: Curve, by: Arrivals, load: float, taken: Taken, counted: Mapping[str, float]) -> Series:
    """Samples are latencies of the requests that were answered, in the order of their end."""
    good = [answer for answer in taken.answers if answer.error is None]
    errors = Counter(answer.error for answer in taken.answers if answer.error is not None)
    figures = {
        "seconds": taken.seconds,
        "requests": float(len(taken.answers)),
        "throughput": throughput(
            [answer.ended for answer in good],
            [answer.latency for answer in good],
            load if by == "concurrency" else None,
        ),
        "offered": _flow([answer.due for answer in taken.answers], taken.seconds),
        "complete": float(taken.died is None),
        **{f"errors.{kind}": float(count) for kind, count in errors.items()},
        **counted,
    }
    if good:
        figures |= _figures_of(good, taken)
    return Series(
        name=REQUEST,
        labels={**curve.labels, by: load},
        samples=tuple(answer.latency for answer in good),
        figures=figures,
    )


def _figures_of(good: Sequence[Answer], taken: Taken) -> dict[str, float]:
    """Per request that was answered: percentiles, bytes, seconds and calls by part."""
    p50, p90, p99 = np.percentile([answer.latency for answer in good], (50, 90, 99)).tolist()
    parts = {name for answer in good for name in answer.parts}
    calls = {name for answer in good for name in answer.calls}
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "steps": float(np.mean([answer.steps for answer in good])),
        "bytes_sent": float(np.mean([answer.bytes_sent for answer in good])),
        "bytes_received": float(np.mean([answer.bytes_received for answer in good])),
        "sent_late": float(np.percentile([answer.sent - answer.due for answer in good], 99)),
        "client_cpu_seconds": taken.client_cpu_seconds / len(taken.answers),
        **{f"part.{name}": float(np.median([a.parts.get(name, 0.0) for a in good])) for name in sorted(parts)},
        **{f"calls.{name}": float(np.mean([a.calls.get(name, 0) for a in good])) for name in sorted(calls)},
    }


def throughput(ends: Sequence[float], latencies: Sequence[float], callers: float | None) -> float:
    """Pictures a second. Of callers by Little's law, callers / mean latency, which the ends of a short run do not bend.

    Of arrivals: from the first due moment to the last answer, less the latency that no load would save.
    """
    if not latencies:
        return 0.0
    if callers is not None:
        return callers / float(np.mean(latencies))
    first = min(end - latency for end, latency in zip(ends, latencies, strict=True))
    span = max(ends) - first - min(latencies)
    return (len(ends) - 1) / span if span > 0 else len(ends) / max(latencies)


def _flow(moments: Sequence[float], seconds: float) -> float:
    """Events a second between the first and the last."""
    span = max(moments, default=0.0) - min(moments, default=0.0)
    return (len(moments) - 1) / span if span > 0 else len(moments) / seconds


def _point(load: float, series: Series) -> Point:
    figures = series.figures
    failed = sum(int(count) for name, count in figures.items() if name.startswith("errors."))
    endless = float("inf")
    return Point(
        load, figures["throughput"], figures.get("p50", endless), figures.get("p99", endless), failed,
        figures["offered"],
    )  # fmt: skip


def _shares(points: Sequence[Point]) -> tuple[float, ...]:
    best = max((point.throughput for point in points), default=0.0)
    return tuple(float(f"{share * best:.3g}") for share in SHARES if best > 0)


def _knees(one: Contender) -> Iterator[Series]:
    unloaded = next((point.p50 for by in one.points.values() for point in by), 0.0)
    found: dict[Arrivals, Point | None] = {
        "concurrency": concurrency_knee(one.points["concurrency"]),
        "rate": rate_knee(one.points["rate"], unloaded),
    }
    for by, knee in found.items():
        if knee is not None:
            figures = {"load": knee.load, "throughput": knee.throughput, "p50": knee.p50, "p99": knee.p99}
            yield Series(name=KNEE, labels={**one.curve.labels, "by": by}, unit="", figures=figures)


def rules() -> tuple[str, ...]:
    """How knees are found, for the record's notes."""
    return f"knee {CONCURRENCY_RULE}", f"knee {RATE_RULE}"


def _difference(counts: Counts, earlier: Counters | None, taken: Taken) -> dict[str, float]:
    if earlier is None or taken.died is not None:
        return {}
    later = counts()
    return {} if later is None else (later - earlier).figures()
