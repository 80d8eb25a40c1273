"""When requests are due, whatever becomes of those before them."""

from __future__ import annotations

import numpy as np


def poisson(rate: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Arrivals at random in `seconds`, `rate` a second on average: seconds from the start, ascending, at least one."""
    generator = np.random.Generator(np.random.Philox(seed))
    arrivals: list[float] = []
    now = float(generator.exponential(1 / rate))
    while now < seconds or not arrivals:
        arrivals.append(now)
        now += float(generator.exponential(1 / rate))
    return tuple(arrivals)
