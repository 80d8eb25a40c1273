from __future__ import annotations

from parure_bench.serve.knee import Point, concurrency_knee, rate_knee


def queue(rate: float, service: float = 0.1) -> Point:
    """An M/M/1 queue, whose p99 is ln(100) times its mean; beyond its capacity it serves what it can."""
    capacity = 1 / service
    if rate >= capacity:
        return Point(rate, capacity, 60.0, 100.0, 0, rate)
    mean = service / (1 - rate * service)
    return Point(rate, rate, 0.69 * mean, 4.6 * mean, 0, rate)


def test_the_knee_by_rate_is_the_last_level_that_keeps_latency_and_follows_what_is_offered() -> None:
    points = [queue(rate) for rate in (11.0, 9.0, 2.0, 5.0, 1.0)]
    knee = rate_knee(points, unloaded=0.35)  # 3 x 0.35 s is the p99 of a load of 5.6/s
    assert knee is not None and knee.load == 5.0


def test_what_fails_or_lags_ends_the_curve_even_where_later_levels_look_well() -> None:
    fine = [Point(rate, rate, 0.1, 0.2, 0, rate) for rate in (1.0, 2.0, 4.0)]
    assert rate_knee(fine, 0.1) == fine[2]
    failing = [fine[0], Point(2.0, 2.0, 0.1, 0.2, 1, 2.0), fine[2]]
    assert rate_knee(failing, 0.1) == fine[0]
    lagging = [fine[0], Point(2.0, 1.5, 0.1, 0.2, 0, 2.0), fine[2]]
    assert rate_knee(lagging, 0.1) == fine[0]
    assert rate_knee([Point(1.0, 1.0, 9.0, 9.0, 0, 1.0)], 0.1) is None


def test_the_knee_by_concurrency_has_the_greatest_throughput_per_latency() -> None:
    def level(callers: int) -> Point:  # one second each, four side by side, then they queue
        throughput = min(callers, 4.0)
        return Point(callers, throughput, callers / throughput, 0.0)

    knee = concurrency_knee([level(n) for n in (16, 8, 1, 2, 4)])
    assert knee is not None and knee.load == 4
    assert concurrency_knee([]) is None
