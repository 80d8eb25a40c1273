from __future__ import annotations

import numpy as np

from parure_bench.serve.schedule import poisson


def test_arrivals_are_random_in_the_right_way_and_the_same_for_a_seed() -> None:
    arrivals = poisson(50.0, 200.0, seed=3)
    assert arrivals == poisson(50.0, 200.0, seed=3) != poisson(50.0, 200.0, seed=4)
    gaps = np.diff([0.0, *arrivals])
    assert abs(len(arrivals) - 10_000) < 5 * 100  # Poisson: the deviation is the root of the mean
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # as of exponential gaps
    assert (gaps > 0).all() and arrivals[-1] < 200.0


def test_even_a_short_run_has_an_arrival() -> None:
    assert len(poisson(0.01, 1.0, seed=0)) == 1
