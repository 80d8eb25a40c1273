"""From a box on a photo to the model's square crop, and back, invertibly (AnyDoor's scheme).

A box lies in photo pixels: x to the right, y down, pixel i covers [i, i + 1). The region is a square of
whole photo pixels around the box; it may reach outside the photo. The crop is that square at the model's
size S. Pixels outside the region, and those whose alpha is zero, come back bit-identical.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from parure.errors import BoxError

MIN_BOX_SIDE = 8
MASK_FLOOR = 1 / 32
"""Mask values up to this count as outside: a sigmoid never reaches zero, a paste must."""

_BAND = 64  # rows that are composed at a time; bounds the floating point memory of a large photo

Pixels = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
Window = tuple[slice, slice]  # rows and columns


@dataclass(frozen=True)
class Box:
    """Where the ornament goes, in photo pixels; right and bottom are exclusive."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def parse(cls, text: str) -> Box:
        """`"L,T,R,B"` as a box; raises `BoxError` where that is not four numbers."""
        try:
            left, top, right, bottom = (float(part) for part in text.split(","))
        except ValueError as exc:
            raise BoxError(
                f"box {text[:100]!r} cannot be read; expected four numbers LEFT,TOP,RIGHT,BOTTOM in photo "
                "pixels; write it like 120,80,360,300"
            ) from exc
        return cls(left, top, right, bottom)

    def __str__(self) -> str:
        return ",".join(f"{edge:g}" for edge in (self.left, self.top, self.right, self.bottom))

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def validate(self, photo_width: int, photo_height: int) -> Box:
        """This box, where it lies wholly on the photo and has sides of at least 8 px; else `BoxError`."""
        photo = f"the photo, which is {photo_width} x {photo_height} pixels"
        if not all(math.isfinite(edge) for edge in (self.left, self.top, self.right, self.bottom)):
            problem, advice = "has an edge that is not a finite number", "give four numbers"
        elif self.right < self.left or self.bottom < self.top:
            problem, advice = "is inverted", "give LEFT,TOP,RIGHT,BOTTOM in this order"
        elif self.right == self.left or self.bottom == self.top:
            problem, advice = "is empty", "draw it around the place of the ornament"
        elif self.left < 0 or self.top < 0 or self.right > photo_width or self.bottom > photo_height:
            problem, advice = "lies outside the photo or reaches out of it", "clip it to the photo"
        elif min(self.width, self.height) < MIN_BOX_SIDE:
            problem = f"is only a few pixels, {self.width:g} x {self.height:g}"
            advice = "draw it larger or use a larger photo"
        else:
            return self
        expected = f"a box of at least {MIN_BOX_SIDE} x {MIN_BOX_SIDE} pixels within {photo}"
        raise BoxError(f"box {self} {problem}; expected {expected}; {advice}")


@dataclass(frozen=True)
class Region:
    """A square of whole photo pixels around a box; made by `crop_region`."""

    box: Box
    photo_height: int
    photo_width: int
    left: int
    top: int
    side: int

    def crop(self, photo: Pixels, size: int) -> FloatArray:
        """The region of `photo`, uint8 [H, W, 3], at the model's size: float32 [size, size, 3] in 0..1.

        What lies outside the photo repeats its nearest edge pixel. Raises `BoxError` for another photo.
        """
        self._check(photo)
        rows, columns = self._visible
        picture = photo[rows, columns]
        gaps = (
            (rows.start - self.top, self.top + self.side - rows.stop),
            (columns.start - self.left, self.left + self.side - columns.stop),
        )
        # The longer axis is padded and shrunk first: the padded square never stands in memory as a whole.
        for axis in (0, 1) if picture.shape[0] > picture.shape[1] else (1, 0):
            padding = [(0, 0), (0, 0), (0, 0)]
            padding[axis] = gaps[axis]
            padded = np.pad(picture, padding, mode="edge")
            height, width = (size if i == axis else padded.shape[i] for i in (0, 1))
            picture = _resize(padded, width, height, Resampling.LANCZOS)
        return picture.astype(np.float32) / np.float32(255)

    def box_mask(self, size: int) -> FloatArray:
        """The share of each crop pixel that the box covers: float32 [size, size]."""
        edges = np.arange(size, dtype=np.float64)
        across, down = (
            np.clip(np.minimum(edges + 1, high) - np.maximum(edges, low), 0, 1) for low, high in self._box_spans(size)
        )
        return np.outer(down, across).astype(np.float32)

    def box_alpha(self, size: int, feather: float) -> FloatArray:
        """A soft paste of the box: float32 [size, size], 1 inside, exactly 0 outside.

        It falls off inside the box over `feather` (a share of the crop's side), and stays a pixel clear of
        the box's edge, so that it is still zero outside the box after `paste` has resized it to the photo.
        """
        clear = max(1.0, size / self.side)  # what one crop pixel reaches in a bilinear resize
        centres = np.arange(size, dtype=np.float64) + 0.5
        ramps = []
        for low, high in self._box_spans(size):
            inside = np.minimum(centres - low, high - centres) - clear
            width = max(min(feather * size, (high - low) / 2 - clear), 1e-6)
            ramp = np.clip(inside / width, 0, 1)
            ramps.append(ramp * ramp * (3 - 2 * ramp))
        across, down = ramps
        return np.outer(down, across).astype(np.float32)

    def paste(self, photo: Pixels, crop_image: NDArray[Any], alpha: FloatArray) -> Pixels:
        """`photo` with `crop_image` laid over its region: a new uint8 [H, W, 3].

        `crop_image` is [size, size, 3], uint8 or float in 0..1; `alpha` is float32 [size, size] in 0..1. Both
        are resized to the region. Pixels whose alpha is then zero, and all outside the region, are
        bit-identical. Raises `BoxError` for another photo.
        """
        self._check(photo)
        if crop_image.dtype != np.uint8:
            crop_image = np.rint(np.clip(crop_image, 0, 1) * 255).astype(np.uint8)
        result = photo.copy()
        weights = np.clip(self._to_photo_scale(alpha, Resampling.BILINEAR, self._visible), 0, 1)
        if not weights.any():
            return result
        pasted = _support(weights)
        weights = weights[pasted]
        within = _inside(self._visible, pasted)
        picture = self._to_photo_scale(crop_image, Resampling.LANCZOS, within)
        view = result[within]
        for start in range(0, len(view), _BAND):
            band = slice(start, start + _BAND)
            under = view[band].astype(np.float32)
            # A weight of 0 or 1 gives back exactly the one or the other: these are small whole numbers.
            over = picture[band] - under
            over *= weights[band, :, None]
            under += over
            view[band] = np.rint(under, out=under)
        return result

    def mask_to_photo(self, mask: FloatArray) -> Pixels:
        """A mask of the crop, [s, s] in 0..1 at any s, on the photo: uint8 [H, W], 0 outside the region."""
        result = np.zeros((self.photo_height, self.photo_width), np.uint8)
        values = np.clip(self._to_photo_scale(mask, Resampling.BILINEAR, self._visible), 0, 1)
        result[self._visible] = np.rint(values * 255)
        return result

    @property
    def _visible(self) -> Window:
        """Rows and columns of the photo that lie within the region."""
        return (
            slice(max(self.top, 0), min(self.top + self.side, self.photo_height)),
            slice(max(self.left, 0), min(self.left + self.side, self.photo_width)),
        )

    def _box_spans(self, size: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """The box in crop pixels: (left, right), (top, bottom)."""
        scale, box = size / self.side, self.box
        return (
            ((box.left - self.left) * scale, (box.right - self.left) * scale),
            ((box.top - self.top) * scale, (box.bottom - self.top) * scale),
        )

    def _to_photo_scale(self, crop: NDArray[Any], filtering: Resampling, window: Window) -> NDArray[Any]:
        """The part of a crop-sized array that lies in `window` of the photo, in photo pixels."""
        rows, columns = window
        scale = len(crop) / self.side
        bounds = (
            (columns.start - self.left) * scale,
            (rows.start - self.top) * scale,
            min((columns.stop - self.left) * scale, len(crop)),
            min((rows.stop - self.top) * scale, len(crop)),
        )
        return _resize(crop, columns.stop - columns.start, rows.stop - rows.start, filtering, bounds)

    def _check(self, photo: Pixels) -> None:
        expected = (self.photo_height, self.photo_width, 3)
        if photo.shape != expected:
            raise BoxError(
                f"photo has shape {list(photo.shape)}; expected {list(expected)}, which box {self.box} was "
                "given for; make the region anew for this photo"
            )


def crop_region(box: Box, photo_shape: tuple[int, ...], enlarge: float) -> Region:
    """The square around `box` whose side is `enlarge` x the box's longer side, rounded to whole pixels.

    `photo_shape` is (H, W, ...). The region always holds the whole box. Raises `BoxError` as `Box.validate`.
    """
    height, width = photo_shape[:2]
    box.validate(width, height)
    first_x, last_x = math.floor(box.left), math.ceil(box.right)
    first_y, last_y = math.floor(box.top), math.ceil(box.bottom)
    wanted = math.floor(enlarge * max(box.width, box.height) + 0.5)
    side = max(wanted, last_x - first_x, last_y - first_y)
    left = math.floor((box.left + box.right - side) / 2 + 0.5)
    top = math.floor((box.top + box.bottom - side) / 2 + 0.5)
    return Region(
        box=box,
        photo_height=height,
        photo_width=width,
        left=min(max(left, last_x - side), first_x),
        top=min(max(top, last_y - side), first_y),
        side=side,
    )


def region_alpha(mask: FloatArray, size: int, feather: float) -> FloatArray:
    """A soft paste of a mask: [s, s] in 0..1 becomes float32 [size, size] in 0..1 with a feathered edge.

    The edge grows outwards by `feather`, a share of the crop's side, so that a thin chain stays opaque.
    Exactly zero farther (along x or y) than `feather` and half a mask cell from every cell above
    `MASK_FLOOR`; half a cell is what the bilinear upsampling reaches.
    """
    support = np.clip((mask - MASK_FLOOR) / (1 - MASK_FLOOR), 0, 1).astype(np.float32)
    soft = np.clip(_resize(support, size, size, Resampling.BILINEAR), 0, 1)
    reach = feather * size
    grow = int(reach / 2)  # half of the way the mask is dilated, the other half it is blurred
    soft = _grown(_grown(soft, grow, 0), grow, 1)
    reach = max(reach - grow, 1)
    alpha: FloatArray = np.clip(_triangle(_triangle(soft, reach, 0), reach, 1), 0, 1)
    return alpha


def _support(weights: FloatArray) -> Window:
    """The smallest window that holds all weights above zero, of which there is one at least."""
    rows, columns = (np.flatnonzero(weights.any(axis=axis)) for axis in (1, 0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _inside(outer: Window, inner: Window) -> Window:
    """`inner`, which counts from the corner of `outer`, counted from where `outer` counts from."""
    rows, columns = (slice(o.start + i.start, o.start + i.stop) for o, i in zip(outer, inner, strict=True))
    return rows, columns


def _grown(values: FloatArray, reach: int, axis: int) -> FloatArray:
    """The largest value within `reach` along `axis`."""
    along = np.moveaxis(values, axis, 0)
    largest = along.copy()
    for shift in range(1, min(reach + 1, len(along))):
        np.maximum(largest[shift:], along[:-shift], out=largest[shift:])
        np.maximum(largest[:-shift], along[shift:], out=largest[:-shift])
    return np.moveaxis(largest, 0, axis)


def _triangle(values: FloatArray, reach: float, axis: int) -> FloatArray:
    """A triangle filter along `axis`, whose weights fall to 0 at `reach` and sum to 1 also at the edges.

    Its sums have no residue, so zeros stay exactly zero. Not a product of matrices: the threads of a BLAS go on
    turning for a while after each, which costs a busy client more than the filter.
    """
    along = np.moveaxis(values, axis, 0)
    total, weights = np.zeros_like(along), np.zeros(len(along), np.float32)
    for shift in range(math.ceil(reach)):
        weight = np.float32(1 - shift / reach)
        end = len(along) - shift
        total[shift:] += weight * along[:end]
        weights[shift:] += weight
        if shift:
            total[:end] += weight * along[shift:]
            weights[:end] += weight
    return np.moveaxis(total / weights[:, None], 0, axis)


def downsample_mask(mask: FloatArray, size: int) -> FloatArray:
    """Area means of a mask [S, S]: float32 [size, size]; whole pixels count where S / size has a rest."""
    blocks, rest = divmod(len(mask), size)
    if rest:
        return _resize(mask, size, size, Resampling.BOX)
    means: FloatArray = mask.reshape(size, blocks, size, blocks).mean(axis=(1, 3), dtype=np.float32)
    return means


def to_model(image: FloatArray) -> FloatArray:
    """A crop [S, S, 3] in 0..1 as the model sees it: float32 [1, 3, S, S] in -1..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None] * 2 - 1, dtype=np.float32)


def from_model(image: FloatArray) -> FloatArray:
    """A model's picture [1, 3, S, S], about -1..1, as a crop: float32 [S, S, 3], clipped to 0..1."""
    return np.ascontiguousarray(np.clip((image[0].transpose(1, 2, 0) + 1) / 2, 0, 1), dtype=np.float32)


def _resize(
    array: NDArray[Any],
    width: int,
    height: int,
    filtering: Resampling,
    bounds: tuple[float, float, float, float] | None = None,
) -> NDArray[Any]:
    """Resize uint8 [h, w, 3] or float32 [h, w], antialiased; only the part within `bounds` where given."""
    exact = array if array.dtype == np.uint8 else array.astype(np.float32, copy=False)
    source = Image.fromarray(np.ascontiguousarray(exact))
    return np.asarray(source.resize((width, height), filtering, box=bounds))
