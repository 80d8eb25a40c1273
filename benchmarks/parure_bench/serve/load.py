"""Requests to a server: by callers who wait for each answer, or at times that are due regardless of answers.

Latency of an open loop is counted from the moment that a request was due, so that a client or a server that falls
behind shows (no coordinated omission).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from parure.errors import ParureError, ServerUnavailable
from parure.tryon import Result

Ask = Callable[[int], Result]
Alive = Callable[[], bool]
MOST_IN_FLIGHT = 256
_GIVE_UP = 3  # answers in a row that are none


@dataclass(frozen=True)
class Answer:
    """One request: seconds from the start of its level, when it was due, was sent, and was answered.

    `error` is the kind of failure. The rest is of a request that did not fail.
    """

    due: float
    sent: float
    ended: float
    error: str | None = None
    message: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    steps: int = 0

    @property
    def latency(self) -> float:
        return self.ended - self.due


@dataclass(frozen=True)
class Taken:
    """What a level gave: its answers in the order of their end, how long it took, and whether the server died."""

    answers: tuple[Answer, ...]
    seconds: float
    client_cpu_seconds: float
    died: str | None = None


class _Watch:
    """Notes answers, and says when to give up: the server no longer answers at all."""

    def __init__(self, alive: Alive) -> None:
        self.answers: list[Answer] = []
        self.died: str | None = None
        self._alive = alive
        self._lost = 0
        self._lock = threading.Lock()
        self._cpu, self.since = time.process_time(), time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.since

    def ask(self, ask: Ask, number: int, due: float | None) -> None:
        sent = self.now()
        try:
            result = ask(number)
        except ParureError as error:
            kind = type(error).__name__
            self._note(Answer(sent if due is None else due, sent, self.now(), kind, str(error)), error)
            return
        wire = result.wire
        self._note(
            Answer(
                sent if due is None else due, sent, self.now(), None, "", wire.sent, wire.received,
                dict(result.timings), dict(result.calls), len(result.masks),
            ),
            None,
        )  # fmt: skip

    def taken(self) -> Taken:
        return Taken(tuple(self.answers), self.now(), time.process_time() - self._cpu, self.died)

    def _note(self, answer: Answer, error: ParureError | None) -> None:
        with self._lock:
            self.answers.append(answer)
            self._lost = self._lost + 1 if isinstance(error, ServerUnavailable) else 0
            asked = self._lost >= _GIVE_UP and self.died is None
        if asked and not self._alive():
            self.died = answer.message


def closed_loop(ask: Ask, concurrency: int, seconds: float, alive: Alive, least: int = 1) -> Taken:
    """`concurrency` callers, each of whom asks again when answered, for `seconds` and at least `least` requests each."""
    watch, numbers = _Watch(alive), _Numbers()

    def caller() -> None:
        asked = 0
        while (watch.now() < seconds or asked < least) and watch.died is None:
            watch.ask(ask, numbers.next(), None)
            asked += 1

    callers = [threading.Thread(target=caller, name=f"caller-{n}") for n in range(concurrency)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    return watch.taken()


def open_loop(ask: Ask, schedule: Sequence[float], alive: Alive) -> Taken:
    """Every request when it is due; with `MOST_IN_FLIGHT` unanswered the next is sent late, and counted as due."""
    watch = _Watch(alive)
    with ThreadPoolExecutor(min(MOST_IN_FLIGHT, len(schedule)), thread_name_prefix="arrival") as pool:
        futures: list[Future[None]] = []
        for number, due in enumerate(schedule):
            time.sleep(max(0.0, due - watch.now()))
            if watch.died is not None:
                break
            futures.append(pool.submit(watch.ask, ask, number, due))
        for future in futures:
            if watch.died is not None:
                future.cancel()
    return watch.taken()


class _Numbers:
    def __init__(self) -> None:
        self._next = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            self._next += 1
            return self._next - 1
