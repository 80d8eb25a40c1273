"""What fast modes save, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from parure_bench.record import Record, Series
from parure_bench.report.look import BLUE, GREEN, GREY, ORANGE, PLUM, styled
from parure_bench.report.section import Section, Table, machine, milliseconds
from parure_bench.statistics import summarise

AXES = {"mode": ("modes", BLUE), "steps": ("fewer steps", ORANGE), "solver": ("another solver", GREEN)}
AIM_SPEED, AIM_DB = 2.0, 35.0
EQUAL_DB = 100.0


def draw(records: Sequence[Record]) -> list[Section]:
    found = [record for record in records if record.kind == "quality" and _ways(record)]
    return [_section(record, index) for index, record in enumerate(found)]


def _ways(record: Record) -> list[Series]:
    return [series for series in record.find("picture") if {"speed", "psnr_exact"} <= series.figures.keys()]


def _label(series: Series) -> str:
    labels = series.labels
    if labels.get("axis") == "mode":
        return str(labels["mode"])
    return f"{labels.get('solver', '')} {labels.get('steps', '')} steps".strip()


def _section(record: Record, index: int) -> Section:
    ways = sorted(_ways(record), key=lambda series: series.figures["speed"])
    figure = go.Figure()
    rest = [series.figures["psnr_exact"] for series in ways if series.figures["psnr_exact"] < EQUAL_DB]
    top = max(rest, default=EQUAL_DB) + 6  # equal pictures would press all others together

    def height(series: Series) -> float:
        return min(series.figures["psnr_exact"], top)

    frontier = [series for series in ways if series.figures.get("pareto")]
    figure.add_trace(
        go.Scatter(x=[s.figures["speed"] for s in frontier], y=[height(s) for s in frontier], mode="lines",
                   name="frontier", line={"color": GREY, "width": 1.5}, hoverinfo="skip")
    )  # fmt: skip
    for axis, (name, colour) in AXES.items():
        mine = [series for series in ways if series.labels.get("axis", "mode") == axis]
        if not mine:
            continue
        figures = [series.figures for series in mine]
        figure.add_trace(
            go.Scatter(
                x=[f["speed"] for f in figures], y=[height(s) for s in mine], name=name, mode="markers+text",
                text=[_label(s) if s.figures.get("pareto") else "" for s in mine], textposition="top right",
                textfont={"size": 11}, customdata=[_label(s) for s in mine],
                marker={"size": 10, "color": [colour if s.figures.get("pareto") else "rgba(0,0,0,0)" for s in mine],
                        "line": {"color": colour, "width": 2}},
                error_x={"type": "data", "symmetric": False, "color": GREY, "thickness": 1,
                         "array": [f.get("speed_high", f["speed"]) - f["speed"] for f in figures],
                         "arrayminus": [f["speed"] - f.get("speed_low", f["speed"]) for f in figures]},
                hovertemplate="%{customdata}: %{x:.3g} x, %{y:.3g} dB<extra></extra>",
            )
        )  # fmt: skip
    figure.add_vline(x=AIM_SPEED, line={"color": PLUM, "width": 1, "dash": "dot"})
    figure.add_hline(y=AIM_DB, line={"color": PLUM, "width": 1, "dash": "dot"})
    styled(figure, 520)
    figure.update_xaxes(title_text="times as fast as exact")
    figure.update_yaxes(title_text="PSNR of the picture against exact, dB")
    met = [series for series in ways if series.figures.get("meets_aim") and series.labels.get("axis", "mode") == "mode"]
    best = max(met, key=lambda series: series.figures["speed"], default=None)
    aim = (
        f"{_label(best)} is {best.figures['speed']:.2f} times as fast at {best.figures['psnr_exact']:.1f} dB"
        if best is not None
        else "no mode reaches it"
    )
    caption = (
        f"Held-out pictures on {machine(record)}. Filled: on the frontier, nothing else is both faster and nearer to exact. "
        f"Pictures that are equal to exact's stand at the top. The dotted lines are the aim, {AIM_SPEED:g} x at {AIM_DB:g} dB: {aim}."
    )
    return Section(
        f"quality-{index + 1}" if index else "quality",
        "Quality against speed",
        caption,
        figure,
        _table(list(reversed(ways))),
    )


def _table(ways: list[Series]) -> Table:
    figures = (("psnr_exact", ".1f"), ("ssim_exact", ".4f"), ("mask_iou_exact", ".3f"), ("mask_iou_truth", ".3f"))
    rows = tuple(
        (_label(s), milliseconds(summarise(s.samples).p50.value) if s.samples else "", f"{s.figures['speed']:.2f}",
         *(format(s.figures[name], form) if name in s.figures else "" for name, form in figures),
         "yes" if s.figures.get("pareto") else "")
        for s in ways
    )  # fmt: skip
    headings = ("way", "p50, ms", "x exact", "PSNR, dB", "SSIM", "mask IoU", "mask IoU to the truth", "frontier")
    return Table(headings, rows)
