"""`parure bench quality`: every mode beside exact on the same pictures, in a record that can be compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import parure
from parure.bundle import Bundle
from parure.cli import main
from parure.errors import InputError, RequestError
from parure.modes import PRESETS
from parure_bench.quality import UNITS, Found, Tally, Way, measure, series, verdict, ways, with_frontier
from parure_bench.record import load_record
from parure_bench.statistics import Estimate

pytestmark = pytest.mark.xdist_group("deep reuse")  # one worker exports the bundle


def found(speed: float, psnr: float, axis: str = "mode", mode: str = "some") -> Found:
    values = {metric: [psnr] for metric in UNITS}
    return Found(Way(axis, mode, 20, "ddim"), [1.0], values, {"unet": 3}, Estimate(speed, speed, speed))


def test_the_record_tells_speed_and_fidelity_of_every_mode_against_exact(
    deep_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "quality.json"
    command = ["bench", "quality", str(deep_bundle), "--triplets", "3", "--mode", "fast", "--mode", "deep=2"]
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--out", str(out)])
    assert exit_.value.code == 0
    record = load_record(out)
    assert record.kind == "quality" and record.incomplete is None
    assert record.environment.bundle == Bundle.open(deep_bundle).identity
    exact, fast, deep = record.find("picture")
    assert [s.labels["mode"] for s in (exact, fast, deep)] == ["exact", "fast", "deep=2"]
    assert exact.figures["speed"] == 1 and exact.figures["psnr_exact"] == 100 and exact.figures["ssim_exact"] == 1
    assert exact.figures["mask_iou_exact"] == pytest.approx(1)
    assert len(fast.samples) == 3 and fast.figures["psnr_exact"] < 100
    assert fast.figures["calls_unet"] < exact.figures["calls_unet"] == 8
    for metric, unit in UNITS.items():
        (kept,) = record.find(metric, mode="fast")
        assert kept.unit == unit and np.mean(kept.samples) == pytest.approx(fast.figures[metric])
    assert any("the aim, a mode 2 x faster than exact at 35 dB" in note for note in record.notes)
    assert "fast" in capsys.readouterr().out


def test_by_default_every_preset_is_measured_and_other_axes_are_named(deep_bundle: Path, tiny_bundle: Path) -> None:
    deep, plain = (list(ways(Bundle.open(path).manifest)) for path in (deep_bundle, tiny_bundle))
    assert deep[0] == Way("mode", "exact", 4, "ddim")
    assert set(PRESETS) <= {way.mode for way in deep}
    assert {way.axis for way in plain} == {"mode", "steps", "solver"}
    assert all(way.mode == "exact" for way in plain if way.axis != "mode")
    assert all("deep" not in way.mode for way in plain) and {"settled", "mask=2"} <= {way.mode for way in plain}
    with pytest.raises(RequestError, match="no unet_shallow"):
        list(ways(Bundle.open(tiny_bundle).manifest, ["deep=2"]))


def test_the_frontier_has_what_nothing_beats_in_both() -> None:
    marked = with_frontier([found(1, 100), found(2, 40), found(1.9, 39), found(2, 38), found(3, 30), found(2, 40)])
    assert [one.frontier for one in marked] == [True, True, False, False, True, True]


def test_the_aim_counts_modes_alone() -> None:
    assert "is not met" in verdict([found(1, 100), found(3, 34.9), found(1.9, 60), found(4, 50, axis="steps")])
    assert "met by quick; the fastest, quick, is 2.50 x faster at 36.0 dB" in verdict([found(2.5, 36, mode="quick")])


def test_what_was_measured_before_a_failure_is_kept(
    deep_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import parure_bench.quality as quality

    scored: list[object] = []
    score = quality.score

    def failing(*arguments: object) -> dict[str, float]:
        scored.append(arguments)
        if len(scored) > 2:
            raise RequestError("the server went away")
        return score(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "score", failing)
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "bench",
                "quality",
                str(deep_bundle),
                "--triplets",
                "2",
                "--mode",
                "fast",
                "--out",
                str(tmp_path / "q.json"),
            ]
        )
    record = load_record(tmp_path / "q.json")
    assert exit_.value.code == 2 and record.incomplete == "the server went away"
    assert [len(s.samples) for s in record.find("picture")] == [1, 1]


def test_a_mode_named_twice_is_refused(deep_bundle: Path) -> None:
    manifest = Bundle.open(deep_bundle).manifest
    with pytest.raises(InputError, match="named twice"):
        Tally(list(ways(manifest, ["fast", "fast"])))


def test_every_series_has_as_many_samples_as_triplets(deep_bundle: Path) -> None:
    with parure.open(deep_bundle, threads=1) as tryon:
        tally = Tally(list(ways(tryon.manifest, ["settled"])))
        assert tally.found() == []
        measure(tryon, tally, 2)
    assert {len(s.samples) for one in tally.found() for s in series(one)} == {2}
