"""The knee of a curve: where more load buys little throughput and costs much latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LATENCY_FACTOR = 3.0
FOLLOWS = 0.9
RATE_RULE = (
    f"by arrival rate: the largest rate up to which, at every measured rate, p99 stays within {LATENCY_FACTOR:g} x the "
    f"unloaded p50, throughput is at least {FOLLOWS:.0%} of what was offered, and nothing fails"
)
CONCURRENCY_RULE = "by concurrency: where throughput / p50 latency, Kleinrock's power, is largest"


@dataclass(frozen=True)
class Point:
    """One level: `load` is the concurrency or the rate, `offered` the rate that really came about."""

    load: float
    throughput: float
    p50: float
    p99: float
    failed: int = 0
    offered: float = 0.0


def rate_knee(points: Sequence[Point], unloaded: float) -> Point | None:
    """None where even the smallest rate is beyond it. `unloaded`: seconds of a request that is alone."""
    knee: Point | None = None
    for point in sorted(points, key=lambda point: point.load):
        if point.failed or point.p99 > LATENCY_FACTOR * unloaded or point.throughput < FOLLOWS * point.offered:
            return knee
        knee = point
    return knee


def concurrency_knee(points: Sequence[Point]) -> Point | None:
    """Of several that are equally good, the smallest."""
    good = [point for point in sorted(points, key=lambda point: point.load) if point.p50 > 0 and not point.failed]
    return max(good, key=lambda point: point.throughput / point.p50, default=None)
