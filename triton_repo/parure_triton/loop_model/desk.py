"""Who is served now, who waits, who is sent away: a bounded number of pictures at work, and a bounded queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol


class Job(Protocol):
    def work(self) -> None:
        """Do it, and answer the caller; raises nothing."""

    def gone(self) -> bool:
        """Whether nobody waits for it any more."""


class Full(Exception):
    """No place is left, neither at work nor in the queue."""


class Desk:
    """Jobs in the order of their arrival, at most `at_work` at once, each in a thread, and `waiting` behind them."""

    def __init__(self, at_work: int, waiting: int, on_change: Callable[[int, int], None]) -> None:
        """`on_change` is told how many jobs are at work, and how many wait, whenever that changes."""
        self.at_work, self.waiting = at_work, waiting
        self._on_change = on_change
        self._threads = ThreadPoolExecutor(at_work, thread_name_prefix="picture")
        self._jobs: dict[Future[None], Job] = {}
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # else an older count could be told last

    def take(self, job: Job) -> None:
        """Raises `Full`. A job in the queue whose caller is gone makes room."""
        if len(self._jobs) >= self.at_work + self.waiting:
            self._drop_gone()
        with self._lock:
            if len(self._jobs) >= self.at_work + self.waiting:
                raise Full
            future = self._threads.submit(job.work)
            self._jobs[future] = job
        future.add_done_callback(self._done)
        self._tell()

    def close(self) -> None:
        """Wait for what is at work; what waits is dropped."""
        self._threads.shutdown(cancel_futures=True)

    def _done(self, future: Future[None]) -> None:
        with self._lock:
            del self._jobs[future]
        self._tell()

    def _drop_gone(self) -> None:
        with self._lock:
            waiting = [(future, job) for future, job in self._jobs.items() if not future.running()]
        for future, job in waiting:
            if job.gone() and future.cancel():
                job.work()  # answers that it was given up

    def _tell(self) -> None:
        with self._telling:
            with self._lock:
                known = len(self._jobs)
            self._on_change(min(known, self.at_work), max(known - self.at_work, 0))
