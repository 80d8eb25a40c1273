"""Components under the roof of a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from parure_bench.record import Record, Series
from parure_bench.report.look import GREY, part_colour, styled
from parure_bench.report.section import Section, Table, machine
from parure_bench.statistics import median

HERE = "this processor"  # as `parure_bench.devices` calls it


@dataclass(frozen=True)
class _Point:
    component: str
    batch: int
    backend: str
    intensity: float
    reached: float
    bound: float


def draw(records: Sequence[Record]) -> list[Section]:
    roofs = [record for record in records if record.kind == "roofline"]
    return [_section(record, records, index) for index, record in enumerate(roofs)]


def _section(roof: Record, records: Sequence[Record], index: int) -> Section:
    parts = [series for series in roof.series if "compute_seconds" in series.figures]
    device, precision = str(parts[0].labels["device"]), str(parts[0].labels["precision"])
    largest = max(parts, key=lambda series: series.figures["flops"]).figures
    peak = largest["flops"] / largest["compute_seconds"]
    bandwidth = (largest["weight_bytes"] + largest["boundary_bytes"]) / largest["memory_seconds"]
    points = list(_measured(parts, device, precision, roof, records, peak, bandwidth))
    shown = points or [_bound(series, peak, bandwidth) for series in parts]
    x = np.geomspace(
        min(p.intensity for p in shown) / 3, max(max(p.intensity for p in shown), peak / bandwidth) * 3, 200
    )
    figure = go.Figure(
        go.Scatter(x=x, y=np.minimum(x * bandwidth, peak), mode="lines", line={"color": GREY, "width": 2},
                   name=f"limit of {device}", hoverinfo="skip")
    )  # fmt: skip
    for number, name in enumerate(dict.fromkeys(p.component for p in shown)):
        mine = [p for p in shown if p.component == name]
        figure.add_trace(
            go.Scatter(
                x=[p.intensity for p in mine], y=[p.reached for p in mine], mode="markers", name=name,
                marker={"color": part_colour(name, number), "size": 10, "symbol": "circle" if points else "circle-open"},
                customdata=[(p.batch, p.backend, p.reached / p.bound) for p in mine],
                hovertemplate=name + ", batch %{customdata[0]}, %{customdata[1]}: %{y:.3s}FLOP/s, %{customdata[2]:.0%} of the "
                "bound<extra></extra>",
            )
        )  # fmt: skip
    styled(figure, 520)
    figure.update_xaxes(type="log", title_text="operations per byte at the graph's boundary, FLOP/B", dtick=1)
    figure.update_yaxes(
        type="log", title_text="FLOP/s", tickformat=".0s", dtick="D2" if bandwidth * x[0] > peak / 300 else 1
    )
    where = f"Measured on {machine(roof)}" if points else "Nothing was measured on it: open circles are the bounds"
    caption = (
        f"{device}, {precision}: {peak / 1e12:.3g} TFLOP/s and {bandwidth / 1e9:.4g} GB/s. Under the slope memory is the "
        f"limit, under the flat part arithmetic. {where}. Bytes are weights and the tensors at the graph's boundary."
    )
    rows = tuple(
        (p.component, str(p.batch), p.backend, f"{p.intensity:,.0f}", f"{p.reached / 1e9:,.0f}", f"{p.bound / 1e9:,.0f}",
         f"{p.reached / p.bound:.0%}")
        for p in shown
    )  # fmt: skip
    headings = ("component", "batch", "backend", "FLOP/B", "GFLOP/s", "bound, GFLOP/s", "of the bound")
    title = f"How near the limit: {device}"
    return Section(f"roofline-{index + 1}" if index else "roofline", title, caption, figure, Table(headings, rows))


def _intensity(series: Series, batch: int) -> float:
    """FLOP per byte of a batch."""
    figures, counted = series.figures, int(series.labels["batch"])
    flops, boundary = (figures[name] / counted * batch for name in ("flops", "boundary_bytes"))
    return flops / (figures["weight_bytes"] + boundary)


def _bound(series: Series, peak: float, bandwidth: float) -> _Point:
    batch = int(series.labels["batch"])
    intensity = _intensity(series, batch)
    bound = min(peak, intensity * bandwidth)
    return _Point(series.name, batch, "bound", intensity, bound, bound)


def _measured(
    parts: Sequence[Series], device: str, precision: str, roof: Record, records: Sequence[Record], peak: float,
    bandwidth: float,
) -> Iterator[_Point]:  # fmt: skip
    """Of records of components on the same device in the same precision."""
    counted = {series.name: series for series in parts}
    for record in records:
        same = record.environment.device == (roof.environment.device if device == HERE else device)
        if record.kind != "components" or not same:
            continue
        for series in record.series:
            if series.name in counted and series.labels.get("precision") == precision and series.samples:
                batch = int(series.labels["batch"])
                intensity = _intensity(counted[series.name], batch)
                reached = series.figures["flops"] / median(series.samples).value
                bound = min(peak, intensity * bandwidth)
                yield _Point(series.name, batch, str(series.labels.get("backend", "")), intensity, reached, bound)
