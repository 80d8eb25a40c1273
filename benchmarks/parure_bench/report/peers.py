"""Every way to make the same picture, as a ratio to the naive loop."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from parure_bench.record import Record, Series
from parure_bench.report.look import BLUE, GREY, ORANGE, styled
from parure_bench.report.section import Section, Table, machine, milliseconds
from parure_bench.statistics import summarise

SETTING = ("steps", "guidance", "solver", "mask")


def draw(records: Sequence[Record]) -> list[Section]:
    sections: list[Section] = []
    for record in (record for record in records if record.kind == "loop"):
        pictures = [s for s in record.find("picture") if "speedup" in s.figures and "curve" not in s.labels]
        for setting in dict.fromkeys(_setting(series) for series in pictures):
            mine = [series for series in pictures if _setting(series) == setting]
            sections.append(_section(record, mine, setting, len(sections)))
    return sections


def _setting(series: Series) -> tuple[str, ...]:
    return tuple(f"{name} {series.labels[name]}" for name in SETTING if name in series.labels)


def _name(series: Series) -> str:
    """`openvino-bf16, fp32, exact loop`, with what is special."""
    labels = series.labels
    words = [str(labels.get(name, "")) for name in ("backend", "precision")]
    loop = f"{labels['loop']} loop" if "loop" in labels else ""
    ornament = f"ornament {labels['ornament']}" if "ornament" in labels else ""
    return ", ".join(filter(None, (*words, loop, ornament)))


def _section(record: Record, pictures: list[Series], setting: tuple[str, ...], index: int) -> Section:
    ordered = sorted(pictures, key=lambda series: series.figures["speedup"])
    ours = [series.labels.get("loop") != "naive" for series in ordered]
    figures = [series.figures for series in ordered]
    figure = go.Figure(
        go.Scatter(
            x=[f["speedup"] for f in figures], y=[_name(series) for series in ordered], mode="markers",
            marker={"size": 11, "color": [BLUE if mine else ORANGE for mine in ours]},
            error_x={"type": "data", "symmetric": False, "array": [f["speedup_high"] - f["speedup"] for f in figures],
                     "arrayminus": [f["speedup"] - f["speedup_low"] for f in figures], "color": GREY, "thickness": 1.5},
            hovertemplate="%{y}: %{x:.3g} x<extra></extra>",
        )
    )  # fmt: skip
    figure.add_vline(x=1, line={"color": GREY, "width": 1, "dash": "dash"})
    styled(figure, 120 + 34 * len(ordered))
    figure.update_layout(margin={"l": 16, "t": 16})
    figure.update_yaxes(automargin=True)
    figure.update_xaxes(title_text="times as fast as the naive loop", rangemode="tozero")
    best = ordered[-1]
    taken = "one after the other" if any("one after the other" in note for note in record.notes) else "taken in turns"
    caption = (
        f"{', '.join(setting)}, on {machine(record)}; same weights, same machine, {taken}. Blue: ours; orange: the loop "
        f"of papers' code. The fastest is {_name(best)}, {best.figures['speedup']:.2f} times as fast. Bars: 95 % bootstrap "
        "intervals of the ratio."
    )
    rows = tuple(
        (_name(s), milliseconds(summarise(s.samples).p50.value), f"{s.figures['speedup']:.2f}",
         f"{s.figures['speedup_low']:.2f} .. {s.figures['speedup_high']:.2f}",
         f"{s.figures['psnr_db']:.0f}" if "psnr_db" in s.figures else "")
        for s in reversed(ordered)
    )  # fmt: skip
    headings = ("way", "p50, ms", "x naive", "95 %", "PSNR to the first, dB")
    return Section(
        f"peers-{index + 1}" if index else "peers", "Against its peers", caption, figure, Table(headings, rows)
    )
