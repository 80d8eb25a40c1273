"""A whole run against one server: every loop, every cache, every level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from parure.errors import ServerUnavailable
from parure.tryon import TryOn, Where, open_tryon
from parure_bench.record import Series
from parure_bench.recording import Run
from parure_bench.serve.counters import Counters, read_counters
from parure_bench.serve.inputs import Asker, Case
from parure_bench.serve.levels import Cache, Contender, Counts, Curve, Extent, measured, rules
from parure_bench.serve.settings import server_settings

Say = Callable[[str], None]


def serve_series(
    run: Run, url: str, tryon: TryOn, curves: Sequence[Curve], given: list[Case], extent: Extent, *,
    steps: int | None, ornaments: int, deadline: float, metrics: str, allow_wire_features: bool, say: Say,
) -> Iterator[Series]:  # fmt: skip
    """Fills `run` as it goes, and yields what it has just measured. Raises `ServerError`."""
    run.series += server_settings(url, tryon.manifest, deadline)
    run.notes += rules()
    counts = _counts(run, metrics)
    any_cold = any(curve.cache == "cold" for curve in curves)
    contenders: list[Contender] = []
    with ExitStack() as stack:
        for curve in curves:
            say(f"{curve.loop} loop, {curve.cache} ornaments: warming up")
            opened = open_tryon(url, deadline=deadline, loop=curve.loop, allow_wire_features=allow_wire_features)
            ask = Asker(stack.enter_context(opened), given, steps, ornaments, cold=curve.cache == "cold")
            ask.warm()
            contenders.append(Contender(curve, ask))
            if any_cold and curve.cache == "warm":  # what is cold meanwhile may have taken its place in a cache
                contenders[-1].ready = ask.warm
        for series in measured(contenders, lambda: _alive(url), extent, counts):
            run.series.append(series)
            yield series


def curves_of(loops: Sequence[Where], caches: Sequence[Cache]) -> list[Curve]:
    return [Curve(loop, cache) for loop in loops for cache in caches]


def _alive(url: str) -> bool:
    try:
        open_tryon(url, deadline=5.0, allow_wire_features=True).close()
    except ServerUnavailable:
        return False
    return True


def _counts(run: Run, metrics: str) -> Counts:
    """What reads the server's counters; nothing, with a note in the record, where they are not to be had."""
    try:
        read_counters(metrics)
    except ServerUnavailable as error:
        run.notes.append(f"no batch sizes and no cache hits: {error}")
        return lambda: None

    def counts() -> Counters | None:
        try:
            return read_counters(metrics)
        except ServerUnavailable:
            return None  # the level itself shows what became of the server

    return counts
