"""Rates and durations as people write them: `200/s`, `12000/min`, `2s`, `500ms`."""

from __future__ import annotations

import math
import re

from parure.errors import InputError

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_NUMBER = r"\s*(\d+(?:\.\d*)?|\.\d+)\s*"


def parse_rate(text: str, option: str = "--rate") -> float:
    """Pictures a second; raises `InputError`."""
    match = re.fullmatch(rf"{_NUMBER}/\s*(s|min|h)\s*", text)
    value = float(match[1]) / _SECONDS[match[2]] if match else 0.0
    if not 0 < value < math.inf:
        raise InputError(
            f"{option} is {text!r}; expected pictures in a time above 0, such as 200/s, 12000/min or 5000/h"
        )
    return value


def parse_duration(text: str, option: str) -> float:
    """Seconds; raises `InputError`."""
    match = re.fullmatch(rf"{_NUMBER}(us|ms|s|min)\s*", text)
    value = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < value < math.inf:
        raise InputError(f"{option} is {text!r}; expected a time above 0 with its unit, such as 2s, 500ms or 1.5s")
    return value


def spoken(seconds: float) -> str:
    """`1.24 s`, `310 ms`, `45 us`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
