from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from parure.cli import main
from parure.errors import RecordError
from parure_bench.environment import Environment
from parure_bench.record import Kind, Record, Series, Span
from parure_bench.report.page import sections, write_page

SECTIONS = ["load", "timeline", "peers", "quality", "roofline", "costs"]


def record(kind: Kind, series: list[Series], **more: Any) -> Record:
    environment = Environment(cpu="a <fast> processor", cores=2, memory_gb=8, system="Linux", python="3.11")
    given = {"kind": kind, "command": "parure bench", "started": "2026-01-01T00:00:00", "environment": environment}
    return Record(**given | {"series": tuple(series)} | more)


def serve() -> Record:
    series = []
    for by, loads in (("concurrency", (1, 2, 4)), ("rate", (0.5, 1.0))):
        for load in loads:
            figures = {"p50": 0.1 * load, "p90": 0.15 * load, "p99": 0.2 * load, "throughput": 3.0, "requests": 20.0,
                       "steps": 4.0, "bytes_sent": 1e4, "bytes_received": 2e4, "mean_unet_batch": 1.5}  # fmt: skip
            labels = {"loop": "server", "ornaments": "warm", by: load}
            series.append(Series(name="request", labels=labels, samples=(0.1, 0.2), figures=figures))
        knee = {"load": 1.0, "throughput": 3.0, "p50": 0.1, "p99": 0.2}
        labels = {"loop": "server", "ornaments": "warm", "by": by}
        series.append(Series(name="knee", labels=labels, unit="", figures=knee))
    return record("serve", series, notes=("knee: somewhere",), incomplete="the server died")


def loop() -> Record:
    shared: dict[str, Any] = {"steps": 4, "guidance": 1.0, "solver": "ddim", "mask": "on", "precision": "fp32"}
    series = [
        Series(
            name="picture", labels={**shared, "backend": backend, "loop": kind, "ornament": "kept"}, samples=(1 / speed,),
            figures={"speedup": speed, "speedup_low": speed - 0.1, "speedup_high": speed + 0.1, "psnr_db": 100.0},
        )
        for backend, kind, speed in (("torch", "naive", 1.0), ("onnxruntime", "exact", 2.5))
    ]  # fmt: skip
    for steps in (1, 2, 5):
        series.append(
            Series(
                name="picture",
                labels={"curve": "steps", "backend": "onnxruntime", "steps": steps},
                samples=(0.1 * steps,),
            )
        )
    slope = {"slope": 0.1, "slope_low": 0.09, "slope_high": 0.11, "intercept": 0.01}
    series.append(
        Series(name="slope", labels={"curve": "steps", "backend": "onnxruntime"}, unit="s per steps", figures=slope)
    )
    timeline = (Span(name="vae_encoder", start=0.0, seconds=0.1), Span(name="unet", start=0.1, seconds=0.4))
    return record("loop", series, timeline=timeline)


def roofline() -> Record:
    figures = {
        "flops": 1e9,
        "weight_bytes": 1e6,
        "boundary_bytes": 1e5,
        "compute_seconds": 0.01,
        "memory_seconds": 0.001,
    }
    labels: dict[str, Any] = {"device": "this processor", "precision": "fp32", "batch": 1}
    return record("roofline", [Series(name="unet", labels=labels, figures=figures)])


def components() -> Record:
    labels: dict[str, Any] = {"batch": 2, "precision": "fp32", "backend": "onnxruntime"}
    return record("components", [Series(name="unet", labels=labels, samples=(0.05, 0.04), figures={"flops": 2e9})])


def quality() -> Record:
    def way(axis: str, mode: str, speed: float, psnr: float) -> Series:
        figures = {"speed": speed, "speed_low": speed - 0.1, "speed_high": speed + 0.1, "psnr_exact": psnr, "pareto": 1.0,
                   "meets_aim": float(speed >= 2), "ssim_exact": 0.99, "mask_iou_exact": 0.9, "mask_iou_truth": 0.8}  # fmt: skip
        return Series(
            name="picture",
            labels={"axis": axis, "mode": mode, "steps": 4, "solver": "ddim"},
            samples=(0.1,),
            figures=figures,
        )

    return record(
        "quality", [way("mode", "exact", 1.0, 100.0), way("mode", "draft", 2.4, 36.0), way("steps", "exact", 1.3, 40.0)]
    )


class Links(HTMLParser):
    """What a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_has_every_section_with_its_table_and_fetches_nothing(tmp_path: Path) -> None:
    records = [serve(), loop(), roofline(), components(), quality()]
    found = sections(records)
    assert [section.name for section in found] == SECTIONS
    text = write_page(records, found, tmp_path).read_text()
    for section in found:
        assert f'id="{section.name}"' in text and section.table.rows
        assert all(len(row) == len(section.table.headings) for row in section.table.rows)
        assert "a &lt;fast&gt; processor" in text  # captions name the machine, and are text
    links = Links()
    links.feed(re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL))
    assert all(link.startswith("#") for link in links.found)
    assert (
        "<script src" not in text
        and "@import" not in text
        and not re.search(r"url\(\s*['\"]?http", text.split("<script>")[0])
    )
    assert "Incomplete: the server died" in text


def test_measured_components_stand_under_the_roof_of_their_own_machine() -> None:
    under = next(section for section in sections([roofline(), components()]) if section.name == "roofline")
    assert under.table.rows == (("unet", "2", "onnxruntime", "1,667", "44", "100", "44%"),)
    bare = next(section for section in sections([roofline()]) if section.name == "roofline")
    assert "Nothing was measured on it" in bare.caption


def test_records_without_anything_to_draw_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecordError, match="nothing to draw in records of kind components"):
        sections([components()])
    (tmp_path / "empty.json").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "report", str(tmp_path / "empty.json"), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and "is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_browser_the_page_is_written_and_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import plotly.graph_objects as go

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no Chrome")

    monkeypatch.setattr(go.Figure, "write_image", refuse)
    path = tmp_path / "loop.json"
    path.write_text(loop().model_dump_json())
    with pytest.raises(SystemExit) as ended:
        main(["bench", "report", str(path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 0 and "apt-get install chromium" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").stat().st_size > 1e6
