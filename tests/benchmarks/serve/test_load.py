from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from parure.errors import DeadlineExceeded, ServerUnavailable
from parure.tryon import Where
from parure.wire import Timings, Wire
from parure_bench.serve.levels import Contender, Curve, Extent, level, measured
from parure_bench.serve.load import closed_loop, open_loop

CURVE = Curve("server", "warm")


def answered(seconds: float = 0.0) -> Any:
    time.sleep(seconds)
    return SimpleNamespace(
        wire=Wire(10, 20), timings=Timings({"total": seconds}, Wire(10, 20)), calls={"unet": 3}, masks=[0, 0, 0]
    )


def test_latency_counts_from_the_moment_that_a_request_was_due() -> None:
    one_at_a_time = threading.Lock()

    def ask(number: int) -> Any:
        with one_at_a_time:
            return answered(0.1)

    taken = open_loop(ask, [0.0, 0.01, 0.02, 0.03], alive=lambda: True)
    latencies = sorted(answer.latency for answer in taken.answers)
    assert latencies[0] >= 0.1 and latencies[-1] >= 0.4 - 0.03  # the last one waits for the three before it
    assert sorted(answer.due for answer in taken.answers) == [0.0, 0.01, 0.02, 0.03]


def test_callers_ask_again_only_when_they_are_answered() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def ask(number: int) -> Any:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        result = answered(0.01)
        with lock:
            under_way -= 1
        return result

    taken = closed_loop(ask, 3, 0.2, alive=lambda: True)
    assert most == 3 and len(taken.answers) > 6
    assert all(answer.sent == answer.due for answer in taken.answers)


def test_errors_are_counted_by_kind_and_their_latency_is_left_out() -> None:
    def ask(number: int) -> Any:
        if number % 2:
            raise DeadlineExceeded("late")
        return answered()

    series = level(CURVE, "rate", 5.0, open_loop(ask, [0.0, 0.01, 0.02, 0.03], lambda: True), {"mean_unet_batch": 2.0})
    assert series.figures["errors.DeadlineExceeded"] == 2 and series.figures["requests"] == 4
    assert len(series.samples) == 2 and series.figures["mean_unet_batch"] == 2.0
    assert (series.figures["bytes_sent"], series.figures["calls.unet"], series.figures["steps"]) == (10, 3, 3)


def test_a_server_that_dies_ends_the_run_and_what_was_measured_is_kept() -> None:
    def ask(number: int) -> Any:
        if number >= 5:
            raise ServerUnavailable("gone")
        return answered(0.001)

    levels = []
    with pytest.raises(ServerUnavailable, match="died in mid-run: gone"):
        for series in measured([Contender(CURVE, ask)], lambda: False, Extent((1, 2), (1.0,), 30.0, 0), lambda: None):
            levels.append(series)
    assert len(levels) == 1 and len(levels[0].samples) == 5
    assert levels[0].figures["complete"] == 0 and levels[0].figures["errors.ServerUnavailable"] == 3


def test_refusals_of_a_server_that_lives_do_not_end_the_run() -> None:
    def ask(number: int) -> Any:
        if number % 10 < 4:
            raise ServerUnavailable("busy")
        return answered()

    taken = closed_loop(ask, 1, 0.05, alive=lambda: True)
    assert taken.died is None and any(answer.error is None for answer in taken.answers)


def test_without_rates_shares_of_the_highest_throughput_are_offered() -> None:
    extent = Extent((1,), None, 0.05, 0)
    rates = [
        s.labels["rate"]
        for s in measured([Contender(CURVE, lambda n: answered(0.005))], lambda: True, extent, lambda: None)
        if "rate" in s.labels
    ]
    assert len(rates) == 7 and rates == sorted(rates) and 100 < rates[-1] / 1.15 < 201


def test_each_level_is_measured_for_all_curves_before_the_next_one() -> None:
    done: list[str] = []

    def contender(loop: Where) -> Contender:
        def ask(number: int) -> Any:
            done.append(loop)
            return answered(0.005)

        return Contender(Curve(loop, "warm"), ask, ready=lambda: done.append("ready"))

    contenders = [contender("server"), contender("client")]
    series = list(measured(contenders, lambda: True, Extent((2, 1), (50.0, 20.0), 0.1, 0), lambda: None))
    order = [(s.labels["loop"], s.labels.get("concurrency", s.labels.get("rate"))) for s in series if s.samples]
    assert order == [(loop, load) for load in (1, 2, 20.0, 50.0) for loop in ("server", "client")]
    changes = [name for name, before in zip(done, ["", *done], strict=False) if name != before]
    assert changes == ["ready", "server", "ready", "client"] * 4
    assert [s.labels["loop"] for s in series if s.name == "knee" and s.labels["by"] == "concurrency"] == [
        "server",
        "client",
    ]
