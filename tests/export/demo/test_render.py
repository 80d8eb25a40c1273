"""The procedural triplets: what every example must hold for the model that is trained on it."""

from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("skimage", reason="the demo's pictures come from scikit-image (extra: demo)")

from parure_export.demo.render import (
    ASTRONAUT_EARRING_BOX,
    ASTRONAUT_NECKLACE_BOX,
    KINDS,
    Kind,
    Scene,
    Triplet,
    render_scene,
    render_triplet,
)

SEEDS = range(48)
SIZE = 128


@pytest.fixture(scope="module")
def triplets() -> list[Triplet]:
    return [render_triplet(seed, size=SIZE) for seed in SEEDS]


def soft_box_iou(example: Triplet | Scene) -> float:
    height, width = example.wearing_mask.shape
    left, top, right, bottom = (round(side) for side in example.box)
    box = np.zeros((height, width))
    box[max(0, top) : bottom, max(0, left) : right] = 1
    return float(np.minimum(box, example.wearing_mask).sum() / np.maximum(box, example.wearing_mask).sum())


def assert_box_contains_mask(example: Triplet | Scene) -> None:
    rows, columns = np.nonzero(example.wearing_mask > 0.5)
    left, top, right, bottom = example.box
    assert left <= columns.min() + 0.5 and columns.max() + 0.5 <= right
    assert top <= rows.min() + 0.5 and rows.max() + 0.5 <= bottom


def assert_picture(picture: NDArray[np.uint8], size: int) -> None:
    assert picture.dtype == np.uint8 and picture.shape == (size, size, 3)


def test_the_same_seed_gives_the_same_triplet() -> None:
    first, second = render_triplet(7, "necklace"), render_triplet(7, "necklace")
    for field in fields(Triplet):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))
    assert not np.array_equal(first.target, render_triplet(8, "necklace").target)


def test_pictures_and_masks_have_the_asked_size_and_range(triplets: list[Triplet]) -> None:
    for triplet in triplets:
        for picture in (triplet.photo, triplet.target, triplet.ornament):
            assert_picture(picture, SIZE)
        for mask in (triplet.wearing_mask, triplet.reference_mask):
            assert mask.dtype == np.float32 and mask.shape == (SIZE, SIZE)
            assert mask.min() >= 0 and mask.max() == pytest.approx(1, abs=1e-4)


def test_the_target_is_the_photo_wherever_nothing_is_worn(triplets: list[Triplet]) -> None:
    for triplet in triplets:
        bare = triplet.wearing_mask == 0
        np.testing.assert_array_equal(triplet.target[bare], triplet.photo[bare])
        assert not np.array_equal(triplet.target[~bare], triplet.photo[~bare])


def test_the_box_contains_the_mask(triplets: list[Triplet]) -> None:
    for triplet in triplets:
        assert_box_contains_mask(triplet)


def test_the_box_is_centred_and_the_crop_is_one_and_a_half_times_its_longer_side(
    triplets: list[Triplet],
) -> None:
    for triplet in triplets:
        left, top, right, bottom = triplet.box
        assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((SIZE / 2, SIZE / 2))
        assert max(right - left, bottom - top) == pytest.approx(SIZE / 1.5)


def test_the_box_is_a_coarse_first_mask(triplets: list[Triplet]) -> None:
    by_kind = {kind: [soft_box_iou(t) for t in triplets if t.kind == kind] for kind in KINDS}
    assert 0.2 <= np.mean([np.mean(scores) for scores in by_kind.values()]) <= 0.45


def test_consecutive_seeds_give_all_kinds_equally_often(triplets: list[Triplet]) -> None:
    kinds = [triplet.kind for triplet in triplets]
    assert {kinds.count(kind) for kind in KINDS} == {len(SEEDS) // 4}


def test_the_reference_picture_shows_the_whole_ornament(triplets: list[Triplet]) -> None:
    for triplet in triplets:
        mask = triplet.reference_mask
        assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) == 0
        rows, columns = np.nonzero(mask > 0.5)
        assert 0.65 <= max(np.ptp(rows), np.ptp(columns)) / SIZE <= 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_triplet_keeps_its_layout_at_another_size(kind: Kind) -> None:
    small, large = render_triplet(5, kind, size=64), render_triplet(5, kind, size=128)
    assert small.box == pytest.approx([side / 2 for side in large.box])
    shrunk = large.wearing_mask.reshape(64, 2, 64, 2).mean(axis=(1, 3))
    assert np.abs(shrunk - small.wearing_mask).mean() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_is_a_whole_photograph_with_room_around_the_crop(kind: Kind) -> None:
    scene = render_scene(kind, seed=3, size=256)
    assert scene.kind == kind
    assert_picture(scene.photo, 256)
    assert_picture(scene.target, 256)
    assert_box_contains_mask(scene)
    bare = scene.wearing_mask == 0
    np.testing.assert_array_equal(scene.target[bare], scene.photo[bare])
    left, top, right, bottom = scene.box
    longer = max(right - left, bottom - top)
    assert 0.25 <= longer / 256 <= 0.5
    for low, high in ((left, right), (top, bottom)):
        assert (low + high) / 2 - 0.75 * longer >= 0 and (low + high) / 2 + 0.75 * longer <= 256


@pytest.mark.parametrize("box", [ASTRONAUT_NECKLACE_BOX, ASTRONAUT_EARRING_BOX])
def test_the_boxes_on_the_portrait_and_their_crops_lie_inside_it(
    box: tuple[float, float, float, float],
) -> None:
    left, top, right, bottom = box
    half = 0.75 * max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    assert half > 0 and min(x, y) - half >= 0 and max(x, y) + half <= 512
