"""Latency and throughput by concurrency and by arrival rate, with the knees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from parure_bench.record import Record, Series
from parure_bench.report.look import COLOURS, GREY, styled, subtitles
from parure_bench.report.section import Section, Table, machine, milliseconds

SIDES = (("concurrency", "callers at once"), ("rate", "pictures offered per second"))


def draw(records: Sequence[Record]) -> list[Section]:
    served = [record for record in records if record.kind == "serve" and record.find("request")]
    return [_section(record, index) for index, record in enumerate(served)]


def _section(record: Record, index: int) -> Section:
    sides = [(by, title) for by, title in SIDES if _levels(record, by)]
    figure = make_subplots(
        2, len(sides), shared_xaxes=True, vertical_spacing=0.07, horizontal_spacing=0.11, row_heights=[0.6, 0.4],
        subplot_titles=[{"concurrency": "closed loop", "rate": "open loop, Poisson arrivals"}[by] for by, _ in sides],
    )  # fmt: skip
    curves = list(dict.fromkeys(_curve(series) for series in record.find("request")))
    for column, (by, title) in enumerate(sides, 1):
        for colour, curve in zip(COLOURS, curves, strict=False):
            _add_curve(figure, [s for s in _levels(record, by) if _curve(s) == curve], by, curve, colour, column)
        if by == "concurrency":
            _add_analyzer(figure, record)
        for knee in record.find("knee", by=by)[:1]:
            _mark_knee(figure, knee, column)
        figure.update_xaxes(title_text=title, row=2, col=column, rangemode="tozero")
        figure.update_yaxes(title_text="latency, s" if column == 1 else None, row=1, col=column, type="log", dtick="D2")
        figure.update_yaxes(
            title_text="pictures per second" if column == 1 else None, row=2, col=column, rangemode="tozero"
        )
    subtitles(figure)
    styled(figure, 620)
    figure.update_layout(legend_y=1.09)
    return Section(
        f"load-{index + 1}" if index else "load",
        "Latency under load",
        _caption(record),
        figure,
        Table(
            ("loop", "ornaments", "load", "requests", "throughput, /s", "p50, ms", "p90, ms", "p99, ms", "mean U-Net batch",
             "sent, kB", "received, kB", "failed"),
            tuple(_row(series) for by, _ in sides for series in _levels(record, by)),
        ),
    )  # fmt: skip


def _levels(record: Record, by: str) -> list[Series]:
    found = [series for series in record.find("request") if by in series.labels and series.samples]
    return sorted(found, key=lambda series: (_curve(series), float(series.labels[by])))


def _curve(series: Series) -> str:
    return f"{series.labels['loop']} loop, {series.labels['ornaments']} ornaments"


def _add_curve(figure: Any, levels: list[Series], by: str, curve: str, colour: str, column: int) -> None:
    x = [float(series.labels[by]) for series in levels]
    shown = by == "concurrency" or not any(trace.name == f"{curve}: p50" for trace in figure.data)
    for name, dash, symbol in (("p50", "solid", "circle"), ("p99", "dot", "circle-open")):
        figure.add_trace(
            go.Scatter(
                x=x, y=[series.figures[name] for series in levels], name=f"{curve}: {name}", legendgroup=f"{curve}{name}",
                showlegend=shown, mode="lines+markers", line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 7},
            ),
            row=1, col=column,
        )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=x, y=[series.figures["throughput"] for series in levels], name=f"{curve}: throughput", showlegend=False,
            mode="lines+markers", line={"color": colour, "width": 2}, marker={"size": 7},
        ),
        row=2, col=column,
    )  # fmt: skip
    if by == "rate" and x:
        figure.add_trace(
            go.Scatter(x=[0, max(x)], y=[0, max(x)], mode="lines", name="as offered", showlegend=False,
                       hoverinfo="skip", line={"color": GREY, "width": 1, "dash": "dash"}),
            row=2, col=column,
        )  # fmt: skip


def _add_analyzer(figure: Any, record: Record) -> None:
    """What NVIDIA's perf_analyzer said of the same server, where it was asked."""
    levels = sorted(record.find("perf_analyzer"), key=lambda series: float(series.labels["concurrency"]))
    x = [float(series.labels["concurrency"]) for series in levels]
    for row, name in ((1, "p50"), (2, "throughput")):
        if levels:
            figure.add_trace(
                go.Scatter(
                    x=x, y=[series.figures[name] for series in levels], name="perf_analyzer: p50", mode="markers",
                    showlegend=row == 1, marker={"symbol": "x-thin", "size": 11, "line": {"width": 2, "color": GREY}},
                ),
                row=row, col=1,
            )  # fmt: skip


def _mark_knee(figure: Any, knee: Series, column: int) -> None:
    load = knee.figures["load"]
    for row in (1, 2):
        figure.add_vline(x=load, line={"color": GREY, "width": 1, "dash": "dash"}, row=row, col=column)
    figure.add_annotation(
        x=load, y=0.02, yref="y domain" if column == 1 else f"y{column} domain", xref="x" if column == 1 else f"x{column}",
        text=f"knee {load:g}", showarrow=False, xanchor="left", yanchor="bottom", xshift=5, font={"color": GREY, "size": 12},
    )  # fmt: skip


def _caption(record: Record) -> str:
    levels = record.find("request")
    steps = next((series.figures["steps"] for series in levels if "steps" in series.figures), None)
    knees = [
        f"{knee.figures['load']:.3g} {'pictures per second' if knee.labels['by'] == 'rate' else 'at once'} "
        f"({knee.figures['throughput']:.3g}/s, p99 {milliseconds(knee.figures['p99'])} ms)"
        for knee in record.find("knee")
    ]
    pictures = "" if steps is None else f" of {steps:.0f} steps"
    text = (
        f"Pictures{pictures} on {machine(record)}. Solid: the median; dotted: 99 % are quicker. Latency of the open loop "
        "counts from the moment that a request was due, so that queueing is not hidden."
    )
    return text + (f" Knee at {'; '.join(knees)}." if knees else " No knee: even the smallest load is beyond it.")


def _row(series: Series) -> tuple[str, ...]:
    figures, by = series.figures, "rate" if "rate" in series.labels else "concurrency"
    failed = sum(count for name, count in figures.items() if name.startswith("errors."))
    return (
        str(series.labels["loop"]),
        str(series.labels["ornaments"]),
        f"{series.labels[by]:g}{'/s' if by == 'rate' else ' at once'}",
        f"{figures['requests']:.0f}",
        f"{figures['throughput']:.3g}",
        *(milliseconds(figures[name]) for name in ("p50", "p90", "p99")),
        f"{figures['mean_unet_batch']:.2f}" if "mean_unet_batch" in figures else "",
        *(f"{figures[name] / 1e3:,.0f}" for name in ("bytes_sent", "bytes_received")),
        f"{failed:.0f}",
    )
