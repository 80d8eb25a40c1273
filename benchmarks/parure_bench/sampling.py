"""Calls timed in turns, so that drift of the machine meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Call = Callable[[], object]


@dataclass(frozen=True)
class Rounds:
    """How often: `warmup` rounds that are not kept, then `count` rounds, or fewer once `seconds` are over (but 3).

    `settle` seconds pass before every call: a runtime's threads keep spinning for a while once they are done, and
    would take cores from the runtime that comes next.
    """

    count: int = 20
    warmup: int = 2
    seconds: float = float("inf")
    settle: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.warmup < 0:
            raise ValueError(f"rounds are {self.count} after {self.warmup} of warm-up; expected at least 1 and 0")


LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Sample:
    """One timed call; `result` is what it returned."""

    name: str
    seconds: float
    result: object


def interleaved(
    calls: Mapping[str, Call],
    rounds: Rounds,
    *,
    synchronize: Call = lambda: None,
    advance: Callable[[str], None] = lambda name: None,
) -> Iterator[Sample]:
    """Time `calls` in turns, each round in another order; yields a `Sample` of every call after the warm-up.

    `synchronize` waits for the device, before a clock starts and before it is read. `advance` is told of every call,
    warm-up included. What a consumer does between samples is not timed, and a call that raises ends the run with
    all samples before it in the consumer's hands.
    """
    names = list(calls)
    started = time.perf_counter()
    for turn in range(-rounds.warmup, rounds.count):
        if turn == 0:
            started = time.perf_counter()
        if turn >= LEAST_ROUNDS and time.perf_counter() - started > rounds.seconds:
            return
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(rounds.settle)
            synchronize()
            since = time.perf_counter()
            result = calls[name]()
            synchronize()
            sample = Sample(name, time.perf_counter() - since, result)
            advance(name)
            if turn >= 0:
                yield sample
            del sample, result  # so that a large output does not live through the next call
