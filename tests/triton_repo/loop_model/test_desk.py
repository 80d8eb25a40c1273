"""The desk: in order, no more than agreed at once, and a clear no beyond that."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from parure_triton.loop_model.desk import Desk, Full


@dataclass
class Work:
    begin: threading.Event
    order: list[str]
    name: str = ""
    is_gone: bool = False
    begun: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        self.begun.set()
        if not self.is_gone:
            self.begin.wait(60)
        self.order.append(self.name)
        self.done.set()

    def gone(self) -> bool:
        return self.is_gone


def test_jobs_run_in_order_within_the_bound_and_the_next_is_refused() -> None:
    told: list[tuple[int, int]] = []
    desk = Desk(1, 2, lambda at_work, waiting: told.append((at_work, waiting)))
    begin, order = threading.Event(), list[str]()
    jobs = [Work(begin, order, name) for name in "abc"]
    for job in jobs:
        desk.take(job)
    with pytest.raises(Full):
        desk.take(Work(begin, order, "d"))
    begin.set()
    assert all(job.done.wait(60) for job in jobs)
    desk.close()
    assert order == ["a", "b", "c"]
    assert max(at_work for at_work, _ in told) == 1 and max(waiting for _, waiting in told) == 2
    assert told[-1] == (0, 0)


def test_a_waiting_job_whose_caller_is_gone_makes_room() -> None:
    desk = Desk(1, 1, lambda at_work, waiting: None)
    begin, order = threading.Event(), list[str]()
    first, second, third = (Work(begin, order, name) for name in "abc")
    desk.take(first)
    assert first.begun.wait(60)
    desk.take(second)
    second.is_gone = True
    desk.take(third)
    assert order == ["b"]  # it was answered
    begin.set()
    assert third.done.wait(60)
    desk.close()
    assert order == ["b", "a", "c"]
