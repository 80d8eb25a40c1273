"""The pipeline on a real exported bundle: what a caller may rely on, and what a caller is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import parure
from parure.errors import BoxError, ImageError, InputError, RequestError
from parure.image import Pixels

BOX = (30.0, 40.0, 70.0, 75.0)


@pytest.fixture(scope="module")
def tryon(tiny_bundle: Path) -> Iterator[parure.TryOn]:
    with parure.open(tiny_bundle, threads=1) as opened:
        yield opened


def test_pixels_outside_the_region_are_bit_identical(tryon: parure.TryOn, photo: Pixels, ornament: Pixels) -> None:
    result = tryon(photo, ornament, BOX, steps=2)
    changed = (np.asarray(result.image) != photo).any(axis=2)
    region = result.region
    outside = np.ones_like(changed)
    outside[max(region.top, 0) : region.top + region.side, max(region.left, 0) : region.left + region.side] = False
    assert not (changed & outside).any()
    assert result.image.size == result.mask.size == (photo.shape[1], photo.shape[0])


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(
    tryon: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    first, again, other = (tryon(photo, ornament, BOX, steps=2, seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.latents, again.latents)
    assert not np.array_equal(first.latents, other.latents)


def test_paths_images_bytes_and_arrays_are_the_same_input(
    tryon: parure.TryOn, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(ornament).save(tmp_path / "ornament.png")
    expected = tryon(photo, ornament, BOX, steps=1).latents
    for p, o in (
        (tmp_path / "photo.png", str(tmp_path / "ornament.png")),
        (Image.fromarray(photo), Image.fromarray(ornament)),
        ((tmp_path / "photo.png").read_bytes(), ornament),
    ):
        assert np.array_equal(tryon(p, o, BOX, steps=1).latents, expected)


def test_without_the_mask_loop_every_step_sees_the_box(tryon: parure.TryOn, photo: Pixels, ornament: Pixels) -> None:
    result = tryon(photo, ornament, BOX, steps=4, mask_loop=False)
    assert result.calls["reference_net"] <= 2  # the ornament (unless kept) and the person, once
    assert np.array_equal(result.masks[0], result.masks[-1])


def test_observing_changes_nothing(tryon: parure.TryOn, photo: Pixels, ornament: Pixels) -> None:
    expected = tryon(photo, ornament, BOX, steps=3)
    for preview in ("none", "latents", "decode"):
        last = list(tryon.stream(photo, ornament, BOX, steps=3, preview=preview))[-1]  # type: ignore[arg-type]
        assert last.result is not None and np.array_equal(last.result.latents, expected.latents)


def test_every_solver_of_the_bundle_gives_a_finite_picture(
    tryon: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    for spec in tryon.manifest.solvers:
        result = tryon(photo, ornament, BOX, steps=3, solver=spec.name)
        assert np.isfinite(result.latents).all(), spec.name


def test_timings_name_every_part(tryon: parure.TryOn, photo: Pixels, ornament: Pixels) -> None:
    result = tryon(photo, ornament, BOX, steps=2, guidance=1)
    assert {
        "preprocess",
        "vae_encoder",
        "reference_net",
        "mask_head",
        "unet",
        "vae_decoder",
        "compose",
        "total",
    } <= set(result.timings)
    assert result.calls["unet"] == 2


def test_guidance_calls_the_unet_twice_a_step(tryon: parure.TryOn, photo: Pixels, ornament: Pixels) -> None:
    assert tryon(photo, ornament, BOX, steps=2, guidance=2).calls["unet"] == 4


def test_joined_guidance_computes_the_same_in_half_the_calls(
    tryon: parure.TryOn, tiny_bundle: Path, photo: Pixels, ornament: Pixels
) -> None:
    with parure.open(tiny_bundle, threads=1, join_guidance=True) as joining:
        for mode in ("exact", "hold=2"):
            joined, plain = (t(photo, ornament, BOX, steps=6, guidance=2.3, mode=mode) for t in (joining, tryon))
            assert np.abs(joined.latents - plain.latents).max() <= 3e-4 * np.abs(plain.latents).max()
            assert joined.calls["unet"] == 6
    with pytest.raises(InputError, match="forms its batches itself"):
        parure.open("grpc://127.0.0.1:1", join_guidance=True)


def test_working_ahead_computes_the_same_picture(
    tryon: parure.TryOn, tiny_bundle: Path, photo: Pixels, ornament: Pixels
) -> None:
    with parure.open(tiny_bundle, threads=1, work_ahead=True) as ahead:
        for mode in ("exact", "hold=2"):
            one, other = (t(photo, ornament, BOX, steps=6, guidance=2.3, mode=mode) for t in (ahead, tryon))
            assert np.array_equal(one.latents, other.latents) and np.array_equal(one.masks, other.masks)
            assert one.calls["unet"] == other.calls["unet"] and one.spared == other.spared
    with pytest.raises(InputError, match="work ahead by themselves"):
        parure.open("grpc://127.0.0.1:1", work_ahead=True)


def test_an_ornament_mask_changes_what_is_seen(tryon: parure.TryOn, photo: Pixels, ornament: Pixels) -> None:
    mask = np.zeros(ornament.shape[:2], np.uint8)
    mask[8:-8, 8:-8] = 255
    plain = tryon(photo, ornament, BOX, steps=1)
    masked = tryon(photo, ornament, BOX, steps=1, ornament_mask=mask)
    assert not np.array_equal(plain.latents, masked.latents)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((10, 10, 10, 40), "10"),
        ((40, 10, 10, 40), "box"),
        ((-5, 10, 40, 40), "photo"),
        ((10, 10, 4000, 40), "photo"),
        ((10, 10, 13, 13), "8"),
        ((10, 10, float("nan"), 40), "nan"),
        ((1, 2, 3), "four numbers"),
        ("no box", "four numbers"),
    ],
)
def test_a_box_that_does_not_fit_is_refused(
    tryon: parure.TryOn, photo: Pixels, ornament: Pixels, box: object, words: str
) -> None:
    with pytest.raises(BoxError) as caught:
        tryon(photo, ornament, box)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"steps": 0}, "steps is 0; expected a whole number from 1 to"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": 100_000}, "steps is 100000"),
        ({"solver": "runge-kutta"}, "solver 'runge-kutta' is not in this bundle; it has"),
        ({"seed": -1}, "seed is -1"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": -1.0}, "guidance is -1.0"),
        ({"mode": "swift"}, "mode is 'swift'; expected one of exact, settled, balanced, fast"),
        ({"mode": "mask=0"}, "mode is 'mask=0', where mask is 0; expected a whole number from 1 on"),
        ({"mode": "settled=nan"}, "settled is nan; expected a number from 0 to 1"),
        ({"mode": parure.Mode(guidance=1.5)}, "guidance is 1.5; expected a number from 0 to 1"),
        ({"mode": "fast"}, "export it again with `parure export --deep-reuse`"),
    ],
)
def test_parameters_out_of_range_are_refused(
    tryon: parure.TryOn, photo: Pixels, ornament: Pixels, parameters: dict[str, object], words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        tryon(photo, ornament, BOX, **parameters)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_picture_that_cannot_be_read_is_named(tryon: parure.TryOn, photo: Pixels, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="ornament") as caught:
        tryon(photo, tmp_path / "missing.png", BOX)
    assert "missing.png" in str(caught.value)


def test_a_box_too_narrow_for_the_model_is_refused(tryon: parure.TryOn, ornament: Pixels) -> None:
    wide = np.zeros((16, 600, 3), np.uint8)
    with pytest.raises(BoxError, match=r"600 x 8 pixels, so narrow .* at most \d+ x the shorter"):
        tryon(wide, ornament, (0, 0, 600, 8), steps=1)
