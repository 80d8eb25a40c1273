"""Crop and paste are inverse to each other, and touch nothing outside the region."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parure.errors import BoxError
from parure.geometry import (
    MASK_FLOOR,
    Box,
    Region,
    crop_region,
    downsample_mask,
    from_model,
    region_alpha,
    to_model,
)

PHOTO = (90, 120)  # H, W


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 17 + y / 31 + phase) * 90 + 128 for phase in (0, 2, 4)]
    return np.rint(np.stack(waves, axis=-1)).astype(np.uint8)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    """Any valid box, with whole or fractional edges, on any small photo, enlarged by 1 to 3."""
    width, height = draw(st.integers(8, 130)), draw(st.integers(8, 130))
    fraction = draw(st.sampled_from([0.0, 0.3, 0.5, 0.99]))
    spans = []
    for length in (width, height):
        low = draw(st.integers(0, length - 8))
        high = draw(st.integers(low + 8, length))
        spans.append((max(0.0, low - fraction), min(high + fraction, float(length))))
    (left, right), (top, bottom) = spans
    enlarge = draw(st.floats(1, 3))
    return crop_region(Box(left, top, right, bottom), (height, width, 3), enlarge)


sizes = st.sampled_from([16, 32, 48, 96])


# Boxes


@pytest.mark.parametrize("text", ["10,20,30.5,40", " 10, 20 , 30.5 ,4e1"])
def test_a_box_is_parsed(text: str) -> None:
    box = Box.parse(text)
    assert box == Box(10, 20, 30.5, 40)
    assert Box.parse(str(box)) == box
    assert (box.width, box.height) == (20.5, 20)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "1,2,3,x", "1;2;3;4", ",,,", "1 2 3 4"])
def test_what_is_not_four_numbers_is_refused(text: str) -> None:
    with pytest.raises(BoxError) as error:
        Box.parse(text)
    assert str(error.value).startswith(f"box {text!r} cannot be read; expected four numbers")


def test_a_valid_box_is_returned_as_it_is() -> None:
    for box in (Box(0, 0, 120, 90), Box(112, 82, 120, 90), Box(0.5, 0.5, 8.5, 8.5)):
        assert box.validate(120, 90) is box


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10,10,10,50", "is empty"),
        ("10,10,50,10", "is empty"),
        ("50,10,10,50", "is inverted"),
        ("10,50,50,10", "is inverted"),
        ("nan,10,50,50", "not a finite number"),
        ("10,10,inf,50", "not a finite number"),
        ("10,-inf,50,50", "not a finite number"),
        ("10,10,1e400,50", "not a finite number"),
        ("-1,10,50,50", "outside the photo"),
        ("10,-0.01,50,50", "outside the photo"),
        ("10,10,120.5,50", "outside the photo"),
        ("10,10,50,91", "outside the photo"),
        ("200,200,300,300", "outside the photo"),
        ("10,10,17.9,50", "only a few pixels, 7.9 x 40"),
        ("10,10,50,12", "only a few pixels, 40 x 2"),
    ],
)
def test_a_bad_box_is_refused_with_its_values_and_the_photos_size(text: str, problem: str) -> None:
    with pytest.raises(BoxError) as error:
        Box.parse(text).validate(120, 90)
    message = str(error.value)
    assert message.startswith(f"box {Box.parse(text)} ")
    assert problem in message
    assert "the photo, which is 120 x 90 pixels" in message
    with pytest.raises(BoxError):
        crop_region(Box.parse(text), PHOTO, 1.5)


def test_boxes_and_regions_are_frozen() -> None:
    box = Box(0, 0, 8, 8)
    for thing in (box, crop_region(box, PHOTO, 1.5)):
        with pytest.raises(FrozenInstanceError):
            thing.left = 3  # type: ignore[misc]


# Regions


@given(regions())
def test_a_region_is_a_square_of_whole_pixels_that_holds_its_box(region: Region) -> None:
    box = region.box
    assert all(isinstance(edge, int) for edge in (region.left, region.top, region.side))
    assert region.left <= box.left
    assert region.top <= box.top
    assert region.left + region.side >= box.right
    assert region.top + region.side >= box.bottom


@given(regions())
def test_a_region_is_centred_on_its_box_to_a_pixel(region: Region) -> None:
    box = region.box
    assert abs(region.left + region.side / 2 - (box.left + box.right) / 2) <= 1
    assert abs(region.top + region.side / 2 - (box.top + box.bottom) / 2) <= 1


def test_the_side_is_enlarge_times_the_longer_side() -> None:
    assert crop_region(Box(40, 30, 80, 50), PHOTO, 1.5) == Region(Box(40, 30, 80, 50), 90, 120, 30, 10, 60)
    assert crop_region(Box(50, 30, 60, 70), PHOTO, 2).side == 80
    assert crop_region(Box(0, 0, 20, 20), PHOTO, 1.5).left == -5


@given(regions(), sizes)
def test_the_box_mask_covers_exactly_the_boxs_area(region: Region, size: int) -> None:
    mask = region.box_mask(size)
    assert mask.dtype == np.float32
    assert mask.shape == (size, size)
    assert 0 <= mask.min() <= mask.max() <= 1
    area = region.box.width * region.box.height * (size / region.side) ** 2
    assert math.isclose(mask.sum(dtype=np.float64), area, rel_tol=1e-4)


@given(regions(), sizes)
def test_a_white_box_on_the_photo_lands_on_the_box_mask(region: Region, size: int) -> None:
    box = region.box
    photo = np.zeros((region.photo_height, region.photo_width, 3), np.uint8)
    photo[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = 255
    seen = region.crop(photo, size)[..., 0] > 0.5
    y, x = np.mgrid[0:size, 0:size] + 0.5
    scale = size / region.side
    slack = max(1.0, scale)  # a crop pixel, or the photo pixel that the whole-pixel square was rounded to
    edges = (
        ((box.left - region.left) * scale, (box.right - region.left) * scale),
        ((box.top - region.top) * scale, (box.bottom - region.top) * scale),
    )
    distance = np.minimum.reduce(
        [x - edges[0][0], edges[0][1] - x, y - edges[1][0], edges[1][1] - y]
    )  # inside the box: positive
    assert seen[distance > slack].all()
    rows, columns = region._visible
    on_photo = (  # the padding repeats the photo's edge, which may be white
        (x > (columns.start - region.left) * scale)
        & (x < (columns.stop - region.left) * scale)
        & (y > (rows.start - region.top) * scale)
        & (y < (rows.stop - region.top) * scale)
    )
    assert not seen[on_photo & (distance < -slack)].any()


def test_the_crop_of_a_whole_pixel_box_has_no_offset() -> None:
    """At 1:1 the white square's crop and the box mask are the same array."""
    box = Box(40, 30, 80, 50)
    photo = np.zeros((*PHOTO, 3), np.uint8)
    photo[30:50, 40:80] = 255
    region = crop_region(box, PHOTO, 1.5)
    np.testing.assert_array_equal(region.crop(photo, 60)[..., 0], region.box_mask(60))


@given(regions(), sizes)
@settings(deadline=None)
def test_a_crop_is_float_in_0_to_1_and_deterministic(region: Region, size: int) -> None:
    photo = noise(region.photo_height, region.photo_width)
    crop = region.crop(photo, size)
    assert crop.dtype == np.float32
    assert crop.shape == (size, size, 3)
    assert 0 <= crop.min() <= crop.max() <= 1
    np.testing.assert_array_equal(crop, region.crop(photo, size))


def test_outside_the_photo_the_crop_repeats_the_edge() -> None:
    photo = noise(20, 20)
    region = crop_region(Box(0, 0, 20, 20), photo.shape, 2)
    crop = np.rint(region.crop(photo, 40) * 255).astype(np.uint8)
    np.testing.assert_array_equal(crop, np.pad(photo, ((10, 10), (10, 10), (0, 0)), mode="edge"))


def test_the_order_of_the_axes_does_not_show() -> None:
    """A photo and its transpose take different paths through the padding, to the same crop."""
    photo = smooth(40, 100)
    wide = crop_region(Box(0, 5, 100, 30), photo.shape, 1.5)
    tall = crop_region(Box(5, 0, 30, 100), photo.transpose(1, 0, 2).shape, 1.5)
    crops = wide.crop(photo, 32), tall.crop(photo.transpose(1, 0, 2), 32).transpose(1, 0, 2)
    np.testing.assert_allclose(*crops, atol=1.01 / 255)


# Paste


@settings(deadline=None)
@given(regions(), sizes, st.integers(0, 3))
def test_where_alpha_is_zero_the_photo_is_bit_identical(region: Region, size: int, seed: int) -> None:
    photo = noise(region.photo_height, region.photo_width)
    before = photo.copy()
    random = np.random.default_rng(seed)
    alpha = random.random((size, size), dtype=np.float32) * (random.random((size, size)) < 0.1)
    result = region.paste(photo, random.random((size, size, 3), dtype=np.float32), alpha)
    assert result.dtype == np.uint8
    assert result.shape == photo.shape
    np.testing.assert_array_equal(photo, before)
    untouched = region.mask_to_photo(alpha) == 0
    np.testing.assert_array_equal(result[untouched], photo[untouched])


@settings(deadline=None)
@given(regions(), sizes)
def test_outside_the_region_the_photo_is_bit_identical(region: Region, size: int) -> None:
    photo = noise(region.photo_height, region.photo_width)
    result = region.paste(photo, 1 - region.crop(photo, size), np.ones((size, size), np.float32))
    outside = np.ones(photo.shape[:2], bool)
    rows = slice(max(region.top, 0), region.top + region.side)
    outside[rows, max(region.left, 0) : region.left + region.side] = False
    np.testing.assert_array_equal(result[outside], photo[outside])


@settings(deadline=None)
@given(regions(), sizes, st.floats(0, 0.3))
def test_a_box_paste_changes_nothing_outside_the_box(region: Region, size: int, feather: float) -> None:
    photo = np.zeros((region.photo_height, region.photo_width, 3), np.uint8)
    white = np.full((size, size, 3), 255, np.uint8)
    changed = region.paste(photo, white, region.box_alpha(size, feather))[..., 0] > 0
    box = region.box
    y, x = np.mgrid[0 : region.photo_height, 0 : region.photo_width] + 0.5
    inside = (x > box.left) & (x < box.right) & (y > box.top) & (y < box.bottom)
    assert not (changed & ~inside).any()


@settings(deadline=None)
@given(regions())
def test_at_scale_one_the_round_trip_is_exact(region: Region) -> None:
    photo = noise(region.photo_height, region.photo_width)
    alpha = np.ones((region.side, region.side), np.float32)
    blank = np.zeros_like(photo)
    result = region.paste(blank, region.crop(photo, region.side), alpha)
    rows, columns = region._visible
    np.testing.assert_array_equal(result[rows, columns], photo[rows, columns])


@settings(deadline=None)
@given(regions())
def test_the_round_trip_of_a_smooth_picture_returns_it(region: Region) -> None:
    photo = smooth(region.photo_height, region.photo_width)
    crop = region.crop(photo, 256)
    model = from_model(to_model(crop))
    result = region.paste(photo, model, np.ones((256, 256), np.float32))
    error = np.abs(result.astype(int) - photo)
    assert error.max() <= 6
    assert error.mean() < 1


def test_alpha_one_gives_the_picture_and_alpha_half_the_mean() -> None:
    photo = np.full((*PHOTO, 3), 100, np.uint8)
    region = crop_region(Box(40, 30, 80, 50), PHOTO, 1.5)
    picture = np.full((60, 60, 3), 200, np.uint8)
    for value, expected in ((1.0, 200), (0.5, 150)):
        result = region.paste(photo, picture, np.full((60, 60), value, np.float32))
        assert (result[10:70, 30:90] == expected).all()
    as_float = region.paste(photo, np.full((60, 60, 3), 200 / 255, np.float32), np.ones((60, 60), np.float32))
    assert (as_float[10:70, 30:90] == 200).all()


def test_crop_and_paste_refuse_another_photo() -> None:
    region = crop_region(Box(40, 30, 80, 50), PHOTO, 1.5)
    other = noise(PHOTO[1], PHOTO[0])
    with pytest.raises(BoxError, match=r"photo has shape \[120, 90, 3\]; expected \[90, 120, 3\]"):
        region.crop(other, 32)
    with pytest.raises(BoxError, match="photo has shape"):
        region.paste(other, np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.float32))


def test_a_long_region_needs_little_memory() -> None:
    """Far larger than the photo: the padded square, 24,000 x 24,000, never stands in memory."""
    for shape in ((40, 16_000, 3), (16_000, 40, 3)):
        photo = np.zeros(shape, np.uint8)
        region = crop_region(Box(0, 0, shape[1], shape[0]), shape, 1.5)
        assert region.side == 24_000
        assert region.paste(photo, region.crop(photo, 64), np.ones((64, 64), np.float32)).shape == shape


# Masks and alphas


@given(regions(), sizes)
def test_the_box_masks_photo_size_mask_is_the_box(region: Region, size: int) -> None:
    pixels = region.mask_to_photo(region.box_mask(size))
    assert pixels.dtype == np.uint8
    mask = pixels / 255
    assert mask.shape == (region.photo_height, region.photo_width)
    assert 0 <= mask.min() <= mask.max() <= 1
    box, slack = region.box, 1.5 * max(1, region.side / size)
    y, x = np.mgrid[0 : region.photo_height, 0 : region.photo_width] + 0.5
    distance = np.minimum.reduce([x - box.left, box.right - x, y - box.top, box.bottom - y])
    assert (mask[distance > slack] > 0.99).all()
    assert (mask[distance < -slack] == 0).all()


@given(regions(), sizes, st.floats(0, 0.3))
def test_box_alpha_is_zero_outside_the_box_and_grows_inwards(region: Region, size: int, feather: float) -> None:
    alpha = region.box_alpha(size, feather)
    assert alpha.dtype == np.float32
    assert 0 <= alpha.min() <= alpha.max() <= 1
    assert (alpha[region.box_mask(size) < 1] == 0).all()
    row = alpha[alpha.sum(axis=1).argmax()]
    peak = row.argmax()
    assert (np.diff(row[: peak + 1]) >= 0).all()
    assert (np.diff(row[peak:]) <= 0).all()


def test_box_alpha_is_one_in_the_middle_and_soft_at_the_edge() -> None:
    region = crop_region(Box(20, 20, 60, 60), PHOTO, 1.5)
    alpha = region.box_alpha(512, 0.04)
    assert alpha[256, 256] == 1
    assert np.abs(np.diff(alpha[256])).max() < 0.1
    assert (alpha[256] == 1).sum() > 250
    hard = region.box_alpha(512, 0)
    assert set(np.unique(hard)) == {0, 1}


@pytest.mark.parametrize("feather", [0.0, 0.01, 0.05, 0.2])
@pytest.mark.parametrize("cells", [8, 16])
def test_region_alpha_ends_where_the_dilated_support_ends(feather: float, cells: int) -> None:
    size = 128
    mask = np.zeros((cells, cells), np.float32)
    mask[3:5, 2:6] = 1
    mask[0, 0] = MASK_FLOOR  # what a sigmoid leaves behind is no support
    alpha = region_alpha(mask, size, feather)
    assert alpha.dtype == np.float32
    assert 0 <= alpha.min() <= alpha.max() <= 1
    cell = size // cells
    reach = math.ceil(feather * size + cell / 2)
    support = np.zeros((size, size), bool)
    top, bottom, left, right = 3 * cell, 5 * cell, 2 * cell, 6 * cell
    support[max(top - reach, 0) : bottom + reach, max(left - reach, 0) : right + reach] = True
    assert (alpha[~support] == 0).all()
    assert (~support).any()
    assert alpha[4 * cell, 4 * cell] > 0.95


def test_region_alpha_is_smooth_and_keeps_full_and_empty_masks() -> None:
    mask = np.zeros((16, 16), np.float32)
    mask[4:12, 4:12] = 1
    alpha = region_alpha(mask, 128, 0.05)
    assert np.abs(np.diff(alpha, axis=0)).max() < 0.15
    assert alpha[64, 64] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(region_alpha(np.ones((16, 16), np.float32), 128, 0.05), 1, atol=1e-5)
    assert (region_alpha(np.zeros((16, 16), np.float32), 128, 0.05) == 0).all()
    np.testing.assert_allclose(alpha, alpha[::-1, ::-1], atol=1e-5)


@pytest.mark.parametrize("feather", [0.0, 0.02, 0.1])
def test_a_chain_one_cell_wide_stays_opaque(feather: float) -> None:
    mask = np.zeros((16, 16), np.float32)
    mask[8] = 1
    assert region_alpha(mask, 128, feather)[64:72, 64].max() > 0.85


@pytest.mark.parametrize(("size", "latent"), [(64, 8), (64, 64), (60, 8)])
def test_downsample_mask_takes_area_means(size: int, latent: int) -> None:
    mask = np.random.default_rng(0).random((size, size), dtype=np.float32)
    small = downsample_mask(mask, latent)
    assert small.dtype == np.float32
    assert small.shape == (latent, latent)
    assert small.mean() == pytest.approx(mask.mean(), abs=1e-3)
    if size % latent == 0:
        block = size // latent
        assert small[1, 2] == pytest.approx(mask[block : 2 * block, 2 * block : 3 * block].mean(), abs=1e-6)


# Values for the model


def test_to_model_and_from_model_are_inverse() -> None:
    image = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    tensor = to_model(image)
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, 3, 8, 8)
    assert tensor.flags.c_contiguous
    np.testing.assert_allclose(tensor[0, 1], image[..., 1] * 2 - 1, atol=1e-6)
    back = from_model(tensor)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, image, atol=1e-6)


def test_from_model_clips_and_accepts_half_precision() -> None:
    tensor = np.array([-3, -1, 0, 1, 3], np.float16).reshape(1, 1, 1, 5).repeat(3, axis=1)
    image = from_model(tensor)
    assert image.dtype == np.float32
    assert image[0, :, 0].tolist() == [0, 0, 0.5, 1, 1]
