"""What samples say, and how sure that is: percentiles, bootstrap intervals, ratios of pairs, slopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95
_BLOCK = 1 << 22  # numbers resampled at once
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that it lies in, at 95 % confidence."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Summary:
    """Of one series: percentiles of its samples, and the interval of the median."""

    count: int
    p50: Estimate
    p90: float
    p99: float
    mean: float
    least: float


def summarise(samples: Sequence[float]) -> Summary:
    """`samples` must not be empty."""
    values = np.asarray(samples, np.float64)
    p90, p99 = np.percentile(values, (90, 99))
    return Summary(len(values), median(samples), float(p90), float(p99), float(values.mean()), float(values.min()))


def median(samples: Sequence[float]) -> Estimate:
    """The median, with its bootstrap interval."""
    values = np.asarray(samples, np.float64)
    return _estimate(float(np.median(values)), _resampled_medians(values, _generator()))


def ratio(new: Sequence[float], old: Sequence[float]) -> Estimate:
    """median(new) / median(old) of runs that know nothing of each other."""
    generator = _generator()
    above, below = (np.asarray(samples, np.float64) for samples in (new, old))
    value = float(np.median(above) / np.median(below))
    return _estimate(value, _resampled_medians(above, generator) / _resampled_medians(below, generator))


def paired_ratio(new: Sequence[float], old: Sequence[float]) -> Estimate:
    """Median of new[i] / old[i], of samples that were taken side by side: what drifts, drifts in both."""
    if len(new) != len(old):
        raise ValueError(f"pairs of {len(new)} and {len(old)} samples; sample both in every round")
    return median((np.asarray(new, np.float64) / np.asarray(old, np.float64)).tolist())


@dataclass(frozen=True)
class Line:
    """value = intercept + slope * x, by least squares."""

    slope: Estimate
    intercept: float

    def figures(self) -> dict[str, float]:
        return {
            "slope": self.slope.value,
            "slope_low": self.slope.low,
            "slope_high": self.slope.high,
            "intercept": self.intercept,
        }


def line(points: Sequence[tuple[float, float]]) -> Line:
    """Through (x, value), with the slope's interval from Student's t; at least three points."""
    from scipy import stats

    if len(points) < 3:
        raise ValueError(f"a slope with an interval needs 3 points, not {len(points)}")
    x, y = np.asarray(points, np.float64).T
    fit = stats.linregress(x, y)
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 2) * fit.stderr)
    slope = float(fit.slope)
    return Line(Estimate(slope, slope - margin, slope + margin), float(fit.intercept))


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))  # the same samples give the same interval


def _resampled_medians(values: Values, generator: np.random.Generator) -> Values:
    return _resampled(values, generator, lambda drawn: np.median(drawn, axis=1))


def _resampled(values: Values, generator: np.random.Generator, statistic: Callable[[Values], Values]) -> Values:
    """`statistic` of RESAMPLES draws with replacement; blocks bound the memory that long series take."""
    block = max(1, _BLOCK // len(values))
    counts = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    return np.concatenate([statistic(generator.choice(values, (count, len(values)))) for count in counts])


def _estimate(value: float, resampled: Values) -> Estimate:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    return Estimate(value, float(low), float(high))
