"""Triton's dynamic batcher before the instances of one component."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import simpy

from parure_bench.plan.device import SharedDevice


@dataclass(frozen=True)
class Batching:
    """As in the component's `config.pbtxt`; `delay` in seconds. Of `preferred` sizes the batcher takes the largest.

    `demand`: the share of the device that one execution can use.
    """

    max_batch: int
    preferred: tuple[int, ...] = ()
    delay: float = 0.0
    instances: int = 1
    demand: float = 1.0


class Batcher:
    """A free instance takes a preferred size at once, and any other number once the oldest call has waited `delay`."""

    def __init__(
        self, env: simpy.Environment, device: SharedDevice, batching: Batching, seconds: Callable[[int], float]
    ) -> None:
        """`seconds` of an execution by its batch size."""
        self._env, self._device, self._batching, self._seconds = env, device, batching, seconds
        self._preferred = sorted(batching.preferred) or [batching.max_batch]
        self._queue: deque[tuple[float, simpy.Event]] = deque()
        self._free = batching.instances
        self.calls = 0
        self.executions = 0

    def call(self) -> simpy.Event:
        """One sample; the event is its answer."""
        answered = self._env.event()
        self._queue.append((self._env.now, answered))
        if self._batching.delay:  # its own wait ends then, whatever happens meanwhile
            timer = self._env.timeout(self._batching.delay)
            timer.callbacks.append(lambda _: self._start())
        self._start()
        return answered

    def _start(self) -> None:
        while self._free and (size := self._size()):
            batch = [self._queue.popleft()[1] for _ in range(size)]
            self._free -= 1
            self.calls += size
            self.executions += 1
            self._device.run(self._seconds(size), self._batching.demand, partial(self._end, batch))

    def _end(self, batch: list[simpy.Event]) -> None:
        self._free += 1
        for answered in batch:
            answered.succeed()
        self._start()

    def _size(self) -> int:
        """How many of the queue go now; 0: none yet."""
        waiting = min(len(self._queue), self._batching.max_batch)
        if not waiting:
            return 0
        if fitting := [size for size in self._preferred if size <= waiting]:
            return fitting[-1]
        oldest = self._queue[0][0]
        waited = self._env.now - oldest >= self._batching.delay * (1 - 1e-9)
        return waiting if waited or waiting == self._batching.max_batch else 0
