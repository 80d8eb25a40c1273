"""Records -> report.html, whole in one file, and a PNG of every chart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from parure.errors import RecordError
from parure_bench.record import Record
from parure_bench.report import costs, load, peers, quality, roofs, timeline
from parure_bench.report.section import Draw, Section

DRAWN: tuple[Draw, ...] = (load.draw, timeline.draw, peers.draw, quality.draw, roofs.draw, costs.draw)
PAGE = "report.html"
_WIDTH, _SCALE = 1000, 2


def sections(records: Sequence[Record]) -> list[Section]:
    """Every chart that the records have something for. Raises `RecordError` where there is none."""
    found = [section for draw in DRAWN for section in draw(records)]
    if not found:
        kinds = ", ".join(sorted({record.kind for record in records}))
        raise RecordError(
            f"there is nothing to draw in records of kind {kinds}; add those of `parure bench loop` or serve"
        )
    return found


def write_page(records: Sequence[Record], found: Sequence[Section], out: Path) -> Path:
    """One file that works offline."""
    environment = Environment(
        loader=PackageLoader("parure_bench.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("page.html.j2").render(
        sections=found,
        records=records,
        figures=_script({section.name: json.loads(section.figure.to_json()) for section in found}),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
    )
    path = out / PAGE
    path.write_text(page, encoding="utf-8")
    return path


def write_pictures(found: Sequence[Section], out: Path) -> tuple[list[Path], str | None]:
    """PNGs on white; where that fails, those that were written and the reason."""
    written: list[Path] = []
    for section in found:
        path = out / f"{section.name}.png"
        figure = section.figure
        figure.update_layout(paper_bgcolor="white")
        try:
            figure.write_image(path, width=_WIDTH, height=figure.layout.height, scale=_SCALE)
        except Exception as error:  # kaleido tells of a missing or broken browser with errors of many kinds
            return written, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        finally:
            figure.update_layout(paper_bgcolor="rgba(0,0,0,0)")
        written.append(path)
    return written, None


def _script(content: Any) -> Markup:
    """JSON that cannot end the script that it stands in."""
    return Markup(json.dumps(content, separators=(",", ":")).replace("</", "<\\/"))
