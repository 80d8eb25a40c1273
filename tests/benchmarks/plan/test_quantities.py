from __future__ import annotations

import pytest

from parure.errors import InputError
from parure_bench.plan.quantities import parse_duration, parse_rate, spoken


@pytest.mark.parametrize(("text", "rate"), [("200/s", 200), ("12000/min", 200), ("1.5 / s", 1.5), ("7200/h", 2)])
def test_rates_are_pictures_in_a_time(text: str, rate: float) -> None:
    assert parse_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2s", 2), ("500ms", 0.5), (".25s", 0.25), ("2min", 120), ("80us", 8e-5)]
)
def test_durations_have_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text, "--p99") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["200", "0/s", "-1/s", "200/day", "", "/s", "1e3/s"])
def test_a_wrong_rate_is_told_with_what_was_expected(text: str) -> None:
    with pytest.raises(InputError, match=r"--rate is '.*'; expected pictures in a time above 0, such as 200/s"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["2", "0s", "2 hours", "", "s"])
def test_a_wrong_duration_is_told_with_what_was_expected(text: str) -> None:
    with pytest.raises(InputError, match=r"--p99 is '.*'; expected a time above 0 with its unit, such as 2s"):
        parse_duration(text, "--p99")


def test_durations_are_spoken_with_a_fitting_unit() -> None:
    assert [spoken(s) for s in (1.234, 0.0456, 8e-5)] == ["1.23 s", "45.6 ms", "80 us"]
