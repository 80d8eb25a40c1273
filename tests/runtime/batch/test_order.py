"""Affinity: an ornament stays with an endpoint while it is warm there, and none waits for ever."""

from __future__ import annotations

import random
from collections import OrderedDict

import pytest

from parure.batch.jobs import Job
from parure.batch.order import Order, Task


def task(number: int, ornament: int) -> Task:
    return Task(Job(number, f"{number}.png", f"{ornament}.png", (0, 0, 9, 9)))


class Cache:
    """A server's ornament cache that holds few."""

    def __init__(self, size: int) -> None:
        self.size, self.hits, self.asked = size, 0, 0
        self._kept: OrderedDict[str, None] = OrderedDict()

    def ask(self, ornament: str) -> None:
        self.asked += 1
        self.hits += ornament in self._kept
        self._kept[ornament] = None
        self._kept.move_to_end(ornament)
        if len(self._kept) > self.size:
            self._kept.popitem(last=False)


def run(order: Order, tasks: list[Task], caches: dict[str, Cache], seed: int = 0) -> list[int]:
    """Feed as there is room; endpoints take in random turns. The rows in the order in which they went out."""
    random_, waiting, taken = random.Random(seed), list(reversed(tasks)), []
    while waiting or len(order):
        while waiting and not order.full:
            order.add(waiting.pop())
        endpoint = random_.choice(list(caches))
        chosen = order.take(endpoint)
        assert chosen is not None
        caches[endpoint].ask(chosen.ornament)
        taken.append(chosen.job.row)
    return taken


@pytest.mark.parametrize("endpoints", [1, 2, 4])
def test_a_hundred_ornaments_a_hundred_times_hit_a_small_cache_nine_times_in_ten(endpoints: int) -> None:
    numbers = [i % 100 for i in range(10_000)]
    random.Random(1).shuffle(numbers)
    caches = {f"e{i}": Cache(size=4) for i in range(endpoints)}
    taken = run(Order(), [task(i, ornament) for i, ornament in enumerate(numbers)], caches)
    assert sorted(taken) == list(range(10_000))
    assert sum(c.hits for c in caches.values()) / 10_000 >= 0.9
    shares = [c.asked for c in caches.values()]
    assert max(shares) - min(shares) <= 0.1 * 10_000


def test_a_rare_ornament_is_not_starved_by_a_frequent_one() -> None:
    order = Order(window=2000, burst=16)
    for i in range(1000):
        order.add(task(i, 0))
    order.add(task(1000, 1))
    taken = []
    while (chosen := order.take("e")) is not None:
        taken.append(chosen.job.row)
        if order.full is False and len(taken) < 500:
            order.add(task(2000 + len(taken), 0))  # more of the frequent one keep coming
    assert taken.index(1000) <= 2 * 16


def test_endpoints_without_an_ornament_of_their_own_help_out() -> None:
    order = Order()
    for i in range(10):
        order.add(task(i, 0))
    assert [order.take(e) is not None for e in ("a", "b", "a", "b")] == [True] * 4


def test_a_job_that_comes_back_is_next_and_a_lost_endpoint_keeps_nothing() -> None:
    order = Order()
    for i in range(4):
        order.add(task(i, i % 2))
    first = order.take("a")
    assert first is not None
    order.add(first, first=True)
    order.forget("a")
    assert order.take("b") is first


def test_with_no_ornament_twice_everything_goes_out_once() -> None:
    caches = {"a": Cache(1), "b": Cache(1)}
    taken = run(Order(window=64), [task(i, i) for i in range(5000)], caches)
    assert sorted(taken) == list(range(5000))
