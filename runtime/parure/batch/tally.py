"""What a batch has done so far, in numbers."""

from __future__ import annotations

import threading
import time
from bisect import insort
from collections import Counter
from dataclasses import dataclass, field

from parure.batch.results import Outcome

_SHARE, _LEAST = 0.2, 100  # attempts beyond the first: a fifth of the jobs that have ended, and some to begin with


@dataclass
class Tally:
    """Safe to share between threads."""

    total: int
    ended: Counter[str] = field(default_factory=Counter)
    how: Counter[str] = field(default_factory=Counter)
    retried: int = 0
    reasons: list[tuple[int, str, str]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    SHOWN = 20

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            self.ended[outcome.status] += 1
            self.how[outcome.how] += 1
            if outcome.status != "done":  # the first rows of the file, in whichever order they end
                insort(self.reasons, (outcome.row.row, outcome.status, outcome.record.reason))
                del self.reasons[self.SHOWN :]

    def may_retry(self) -> bool:
        """Whether the budget allows one more attempt, which then counts."""
        with self._lock:
            if self.retried >= _LEAST + _SHARE * self.ended.total():
                return False
            self.retried += 1
            return True

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    @property
    def failures(self) -> int:
        return self.ended["rejected"] + self.ended["failed"]

    @property
    def rate(self) -> float:
        """Jobs that this run has brought to an end in a second."""
        return self.how["new"] / max(self.seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds until the end, at this rate."""
        return max(self.total - self.ended.total(), 0) / self.rate if self.how["new"] else None
