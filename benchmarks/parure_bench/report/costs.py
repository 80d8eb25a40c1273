"""Cost against work: steps, batch, concurrency, ornament repeats; each with its slope."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from parure_bench.record import Record
from parure_bench.report.look import BLUE, GREY, styled, subtitles
from parure_bench.report.section import Section, Table, machine, milliseconds
from parure_bench.statistics import line, median

MEANING = {
    "steps": "each step adds a ReferenceNet, a mask head and a U-Net pass; what is left at 0 is encoding and decoding",
    "batch": "what one more picture in a batch adds to a step",
    "ornament-repeats": "a picture with an ornament that is kept; what is left at 0 is encoding it once",
    "concurrency": "what one more caller adds to everybody's wait: once the server is full, 1 / throughput",
}
UNITS = {"steps": "steps", "batch": "pictures in a batch", "ornament-repeats": "pictures with one ornament",
         "concurrency": "callers at once"}  # fmt: skip


EACH = {"steps": "step", "batch": "picture in a batch", "ornament-repeats": "picture", "concurrency": "caller"}


@dataclass(frozen=True)
class _Cost:
    axis: str
    what: str
    points: tuple[tuple[float, float], ...]
    slope: float
    low: float
    high: float
    intercept: float
    where: str


def draw(records: Sequence[Record]) -> list[Section]:
    costs = [cost for record in records for cost in (*_of_loop(record), *_of_server(record))]
    return [_section(costs)] if costs else []


def _of_loop(record: Record) -> Iterator[_Cost]:
    for slope in record.find("slope"):
        axis = str(slope.labels["curve"])
        points = [
            s for s in record.series if s.name != "slope" and s.samples and slope.labels.items() <= s.labels.items()
        ]
        places = tuple(sorted((float(s.labels[axis]), median(s.samples).value) for s in points))
        f = slope.figures
        what = "seconds of all" if axis == "ornament-repeats" else "seconds of a step" if axis == "batch" else "seconds"
        yield _Cost(axis, what, places, f["slope"], f["slope_low"], f["slope_high"], f["intercept"], machine(record))


def _of_server(record: Record) -> Iterator[_Cost]:
    levels = [
        s for s in record.find("request", loop="server", ornaments="warm") if "concurrency" in s.labels and s.samples
    ]
    places = sorted((float(s.labels["concurrency"]), s.figures["p50"]) for s in levels)
    if len(places) >= 3:
        fit = line(places)
        slope = fit.slope
        yield _Cost(
            "concurrency",
            "seconds, p50",
            tuple(places),
            slope.value,
            slope.low,
            slope.high,
            fit.intercept,
            machine(record),
        )


def _section(costs: Sequence[_Cost]) -> Section:
    columns = min(2, len(costs))
    rows = -(-len(costs) // columns)
    figure = make_subplots(
        rows, columns, horizontal_spacing=0.12, vertical_spacing=0.3 / rows,
        subplot_titles=[f"{milliseconds(cost.slope)} ms per {EACH.get(cost.axis, cost.axis)}" for cost in costs],
    )  # fmt: skip
    for index, cost in enumerate(costs):
        row, column = index // columns + 1, index % columns + 1
        x = [place[0] for place in cost.points]
        figure.add_trace(
            go.Scatter(x=[0, max(x)], y=[cost.intercept, cost.intercept + cost.slope * max(x)], mode="lines",
                       line={"color": GREY, "width": 1.5, "dash": "dash"}, hoverinfo="skip"),
            row=row, col=column,
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(x=x, y=[place[1] for place in cost.points], mode="markers", marker={"color": BLUE, "size": 8},
                       hovertemplate="%{x:g}: %{y:.3g} s<extra></extra>"),
            row=row, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text=UNITS.get(cost.axis, cost.axis), row=row, col=column, rangemode="tozero")
        figure.update_yaxes(title_text=cost.what, row=row, col=column, rangemode="tozero")
    subtitles(figure)
    styled(figure, 90 + 320 * rows)
    figure.update_layout(showlegend=False)
    caption = (
        f"On {', '.join(dict.fromkeys(cost.where for cost in costs))}. Points: medians; dashed: the line of least squares, whose "
        "slope is the title."
    )
    table = tuple(
        (cost.axis, f"{milliseconds(cost.slope)} ms", f"{milliseconds(cost.low)} .. {milliseconds(cost.high)}",
         f"{milliseconds(cost.intercept)} ms", MEANING.get(cost.axis, ""))
        for cost in costs
    )  # fmt: skip
    headings = ("by", "slope", "95 %, ms", "at 0", "what it is")
    return Section("costs", "Cost against work", caption, figure, Table(headings, table))
