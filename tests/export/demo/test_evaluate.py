"""Scores are what they are called, and are not measured twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import parure
from parure.cli import main
from parure.geometry import downsample_mask
from parure_export.demo import showcase
from parure_export.demo.evaluate import evaluate, psnr, soft_iou, summary


def test_soft_iou_and_psnr_are_what_they_are_called() -> None:
    a = np.array([[1.0, 0.5], [0.0, 0.0]], np.float32)
    b = np.array([[0.5, 1.0], [0.0, 1.0]], np.float32)
    assert soft_iou(a, b) == pytest.approx(1.0 / 3.0)
    assert soft_iou(a, a) == 1.0
    dark, light = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(dark, light) == pytest.approx(20 * np.log10(5)) and psnr(dark, dark) == 100


def test_a_triplet_is_scored_against_its_truth_with_the_loop_and_without(tiny_bundle: Path) -> None:
    with parure.open(tiny_bundle, threads=1) as tryon:
        examples = list(evaluate(tryon, 4, steps=2))
    assert [e.score.kind for e in examples] == ["bracelet", "ring", "earring", "necklace"]
    for e in examples:
        truth = downsample_mask(e.triplet.wearing_mask, 16)
        assert e.score.mask_iou == soft_iou(e.result.masks[-1], truth)
        assert e.score.psnr_loop == psnr(np.asarray(e.result.image), e.triplet.target)
        assert e.score.psnr_no_loop == psnr(np.asarray(e.without_loop.image), e.triplet.target)
        assert np.array_equal(e.without_loop.masks[0], e.without_loop.masks[-1])
    report = summary([e.score for e in examples])
    assert report["mask_iou"] == pytest.approx(np.mean([e.score.mask_iou for e in examples]), abs=1e-4)


def test_evaluate_writes_report_and_picture(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", str(tiny_bundle), "--out", str(tmp_path / "out"), "--triplets", "2", "--steps", "1"])
    assert exit_.value.code == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["triplets"] == 2 and {"mask_iou", "box_iou", "psnr_loop", "psnr_no_loop"} <= set(report)
    assert Image.open(tmp_path / "out" / "evaluation.png").width > 500


def test_the_demo_measures_a_bundle_once(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with parure.open(tiny_bundle, threads=1) as tryon:
        first = showcase._evaluation(tryon, tmp_path, tiny_bundle, 4, lambda text: None)
        monkeypatch.setattr(showcase, "evaluate", None)  # whoever measures now fails
        assert showcase._evaluation(tryon, tmp_path, tiny_bundle, 4, lambda text: None) == first


@pytest.mark.xdist_group("deep reuse")
def test_the_demo_reuses_a_bundle_of_this_very_checkpoint_and_for_every_mode(
    deep_bundle: Path, tiny_bundle: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[Path] = []
    monkeypatch.setattr(showcase, "CHECKPOINT", tiny_checkpoint)
    monkeypatch.setattr(showcase, "export_bundle", lambda checkpoint, path, **options: exported.append(path))
    said: list[str] = []
    assert showcase.prepared_bundle(deep_bundle, said.append) == deep_bundle
    assert said == [f"bundle {deep_bundle} is there already"] and not exported
    showcase.prepared_bundle(tiny_bundle, said.append)  # it lacks what fast modes need
    assert exported == [tiny_bundle]
