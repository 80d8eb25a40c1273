"""One picture as a timeline of its component calls."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from parure_bench.record import Record
from parure_bench.report.look import part_colour, styled
from parure_bench.report.section import Section, Table, machine, milliseconds


def draw(records: Sequence[Record]) -> list[Section]:
    timed = [record for record in records if record.timeline]
    return [_section(record, index) for index, record in enumerate(timed)]


def _section(record: Record, index: int) -> Section:
    spans = record.timeline
    names = list(dict.fromkeys(span.name for span in spans))
    total = max(span.start + span.seconds for span in spans)
    spent = {name: sum(span.seconds for span in spans if span.name == name) for name in names}
    figure = go.Figure()
    for number, name in enumerate(names):
        mine = [span for span in spans if span.name == name]
        figure.add_trace(
            go.Bar(
                base=[span.start * 1e3 for span in mine], x=[span.seconds * 1e3 for span in mine], y=[name] * len(mine),
                orientation="h", name=name, marker={"color": part_colour(name, number), "line": {"width": 0}}, width=0.62,
                hovertemplate="%{y}: %{x:.3g} ms, from %{base:.4g} ms<extra></extra>",
            )
        )  # fmt: skip
    styled(figure, 90 + 44 * len(names))
    figure.update_layout(barmode="overlay", showlegend=False, margin={"l": 120, "t": 16})
    figure.update_xaxes(title_text="ms since the picture began", range=[0, total * 1e3 * 1.01])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    most = max(spent, key=lambda name: spent[name])
    inside = sum(spent.values()) / total
    caption = (
        f"One picture on {machine(record)}, {milliseconds(total)} ms: every bar is a call of a component. {most} takes "
        f"{spent[most] / total:.0%}; {1 - inside:.1%} is spent between the calls."
    )
    rows = []
    for name in names:
        calls = sum(span.name == name for span in spans)
        each = milliseconds(spent[name] / calls)
        rows.append((name, str(calls), each, milliseconds(spent[name]), f"{spent[name] / total:.1%}"))
    return Section(
        f"timeline-{index + 1}" if index else "timeline", "Where the time of one picture goes", caption, figure,
        Table(("component", "calls", "ms each", "ms in all", "share"), tuple(rows)),
    )  # fmt: skip
