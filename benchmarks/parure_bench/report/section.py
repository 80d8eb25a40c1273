"""A chart with its words and its table: what a page is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from parure_bench.record import Record


@dataclass(frozen=True)
class Table:
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """`name` is that of the picture file; `figure` is plotly's; `caption` says what one sees, and on which machine."""

    name: str
    title: str
    caption: str
    figure: Any
    table: Table


Draw = Callable[[Sequence[Record]], list[Section]]


def machine(record: Record) -> str:
    """Where it was measured, for captions."""
    return record.environment.device


def milliseconds(seconds: float) -> str:
    """With three digits: `4.21`, `1,240`."""
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
