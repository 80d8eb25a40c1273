"""Intervals cover what they should, and ratios of pairs do not see drift."""

from __future__ import annotations

import numpy as np
import pytest

from parure_bench.statistics import line, median, paired_ratio, ratio, summarise


def test_the_interval_of_the_median_covers_the_true_one_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    intervals = [median(generator.lognormal(0, 0.5, 40).tolist()) for _ in range(200)]
    covered = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
    assert 0.88 <= covered <= 0.99


def test_intervals_get_narrower_with_more_samples_and_are_points_for_equal_ones() -> None:
    generator = np.random.default_rng(2)
    few, many = (median(generator.normal(10, 1, count).tolist()) for count in (20, 2000))
    assert many.high - many.low < (few.high - few.low) / 3
    assert median([2.0, 2.0, 2.0]).low == median([2.0, 2.0, 2.0]).high == 2


def test_percentiles_are_those_of_the_samples() -> None:
    found = summarise([float(value) for value in range(1, 101)])
    assert (found.count, found.p50.value, found.least) == (100, 50.5, 1)
    assert found.p90 == pytest.approx(90.1) and found.p99 == pytest.approx(99.01)


def test_the_same_samples_give_the_same_interval() -> None:
    samples = np.random.default_rng(3).normal(1, 0.1, 30).tolist()
    assert median(samples) == median(samples)


def test_a_ratio_is_found_and_its_interval_excludes_1_only_where_there_is_a_change() -> None:
    generator = np.random.default_rng(4)
    old, same, slower = (generator.normal(mean, 0.05, 60).tolist() for mean in (1, 1, 1.2))
    assert not ratio(same, old).excludes(1)
    changed = ratio(slower, old)
    assert changed.excludes(1) and changed.value == pytest.approx(1.2, abs=0.05)


def test_pairs_cancel_a_drift_that_both_share() -> None:
    drift = np.linspace(1, 3, 40)
    generator = np.random.default_rng(5)
    old = drift * generator.normal(1, 0.01, 40)
    new = 1.1 * drift * generator.normal(1, 0.01, 40)
    paired, apart = paired_ratio(new.tolist(), old.tolist()), ratio(new.tolist(), old.tolist())
    assert paired.excludes(1) and paired.value == pytest.approx(1.1, abs=0.01)
    assert not apart.excludes(1)
    with pytest.raises(ValueError, match="pairs of 2 and 1"):
        paired_ratio([1.0, 2.0], [1.0])


def test_a_slope_is_found_with_its_interval() -> None:
    generator = np.random.default_rng(6)
    fitted = line([(x, 0.5 + 2 * x + generator.normal(0, 0.01)) for x in range(1, 12)])
    assert fitted.slope.low < 2 < fitted.slope.high
    assert fitted.intercept == pytest.approx(0.5, abs=0.05)
    with pytest.raises(ValueError, match="3 points"):
        line([(1, 1.0), (2, 2.0)])
