"""What executes: a GPU, or the cores of a host. Executions side by side slow each other down."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

import simpy

Done = Callable[[], object]


class SharedDevice:
    """Processor sharing: executions that together demand more than there is all run at the same reduced speed.

    An execution demands a share of the device, 1 for a whole GPU or for all cores. That two executions on one GPU
    take twice as long as one is on the safe side: where one leaves multiprocessors idle, they overlap in part.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._progress = 0.0  # seconds of work that an execution has got done which was there from the start
        self._since = 0.0
        self._demand = 0.0
        self._ends: list[tuple[float, int, float, Done]] = []
        self._numbers = count()
        self._version = 0
        self.busy = 0.0
        """Seconds for which the device was in use, by the share that was."""

    def run(self, seconds: float, demand: float, done: Done) -> None:
        """Work that takes `seconds` if alone; calls `done` at its end."""
        self._advance()
        heapq.heappush(self._ends, (self._progress + seconds, next(self._numbers), demand, done))
        self._demand += demand
        self._plan()

    def _speed(self) -> float:
        return 1.0 / max(self._demand, 1.0)

    def _advance(self) -> None:
        passed = self._env.now - self._since
        self._since = self._env.now
        self._progress += passed * self._speed()
        self.busy += passed * min(self._demand, 1.0)

    def _plan(self) -> None:
        self._version += 1
        if not self._ends:
            self._demand = 0.0  # sums of floating-point numbers leave a rest
            return
        version, left = self._version, max(self._ends[0][0] - self._progress, 0.0)
        timer = self._env.timeout(left / self._speed())
        timer.callbacks.append(lambda _: self._first_ends(version))

    def _first_ends(self, version: int) -> None:
        if version != self._version:
            return  # something has begun or ended since
        self._advance()
        _, _, demand, done = heapq.heappop(self._ends)
        self._demand -= demand
        self._plan()
        done()
