"""Which job an endpoint gets next: one whose ornament it has warm, without letting any ornament wait for ever.

Jobs wait in a window, by ornament. An endpoint stays with an ornament for at most `BURST` jobs and then goes on to the
one that has waited longest, among those that it served before or nobody has; only where there is none of these it
helps another endpoint with its ornament.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass

from parure.batch.jobs import Job

BURST = 64
WINDOW = 4096
_REMEMBERED = 65536  # ornaments whose endpoint is remembered


@dataclass(slots=True)
class Task:
    """A job, and how often it was tried."""

    job: Job
    attempts: int = 0
    counted: int = 0  # attempts that may have failed by the job's own fault

    @property
    def ornament(self) -> str:
        return f"{self.job.ornament}\n{self.job.ornament_mask or ''}"


class Order:
    """Not safe to share between threads: the dispatcher guards it."""

    def __init__(self, window: int = WINDOW, burst: int = BURST) -> None:
        self._window, self._burst = window, burst
        self._groups: OrderedDict[str, deque[Task]] = OrderedDict()  # what has waited longest comes first
        self._home: OrderedDict[str, str] = OrderedDict()  # ornament -> the endpoint that had it last
        self._current: dict[str, tuple[str, int]] = {}  # endpoint -> its ornament, and how many more of it
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def full(self) -> bool:
        return self._count >= self._window

    def add(self, task: Task, *, first: bool = False) -> None:
        """`first`: before all others of its ornament, for a job that comes back."""
        group = self._groups.setdefault(task.ornament, deque())
        if first:
            group.appendleft(task)
        else:
            group.append(task)
        self._count += 1

    def take(self, endpoint: str) -> Task | None:
        """The next job for `endpoint`; None where none waits."""
        ornament, left = self._current.get(endpoint, ("", 0))
        if not left or ornament not in self._groups:
            chosen = self._choose(endpoint)
            if chosen is None:
                return None
            ornament, left = chosen, self._burst
            self._settle(ornament, endpoint)
        self._current[endpoint] = (ornament, left - 1)
        group = self._groups[ornament]
        task = group.popleft()
        self._count -= 1
        if not group:
            del self._groups[ornament]
        elif left == 1:
            self._groups.move_to_end(ornament)  # it has had its turn
        return task

    def forget(self, endpoint: str) -> None:
        """Nothing is warm there any more."""
        self._current.pop(endpoint, None)
        for ornament in [ornament for ornament, home in self._home.items() if home == endpoint]:
            del self._home[ornament]

    def _choose(self, endpoint: str) -> str | None:
        """The ornament that waits longest of those at home here or nowhere; else the one with most jobs."""
        for ornament in self._groups:
            if self._home.get(ornament, endpoint) == endpoint:
                return ornament
        return max(self._groups, key=lambda ornament: len(self._groups[ornament]), default=None)

    def _settle(self, ornament: str, endpoint: str) -> None:
        self._home.setdefault(ornament, endpoint)
        self._home.move_to_end(ornament)
        if len(self._home) > _REMEMBERED:
            self._home.popitem(last=False)
