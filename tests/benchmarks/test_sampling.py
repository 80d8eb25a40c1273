"""Calls take turns, warm-up is not kept, and what fails leaves what came before."""

from __future__ import annotations

import time

import pytest

from parure_bench.sampling import Rounds, interleaved


def test_calls_take_turns_in_another_order_each_round_and_warm_up_is_not_kept() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}  # type: ignore[misc]
    taken = [sample.name for sample in interleaved(calls, Rounds(count=3, warmup=1))]
    assert len(order) == 12 and order[3:] == taken
    rounds = [taken[start : start + 3] for start in (0, 3, 6)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert {turn[0] for turn in rounds} == {"a", "b", "c"}


def test_the_device_is_waited_for_before_the_clock_starts_and_before_it_is_read() -> None:
    events: list[str] = []
    samples = interleaved(
        {"call": lambda: events.append("call")}, Rounds(1, 0), synchronize=lambda: events.append("wait")
    )
    assert [sample.name for sample in samples] == ["call"]
    assert events == ["wait", "call", "wait"]


def test_what_the_consumer_does_is_not_timed() -> None:
    seconds = []
    for sample in interleaved({"quick": lambda: None}, Rounds(3, 0)):
        time.sleep(0.05)
        seconds.append(sample.seconds)
    assert min(seconds) < 0.05


def test_samples_before_a_failure_are_in_the_consumers_hands() -> None:
    left = [1, 2, 3]
    kept = []
    with pytest.raises(IndexError):
        for sample in interleaved({"call": left.pop}, Rounds(9, 1)):
            kept.append(sample.result)
    assert kept == [2, 1]


def test_time_ends_a_run_but_not_before_three_rounds() -> None:
    assert len(list(interleaved({"call": lambda: None}, Rounds(100, 0, seconds=1e-9)))) == 3


def test_a_run_of_no_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Rounds(0)
