"""What lies behind a body: photographs that ship inside scikit-image's wheel, gradients, blurs, cloth.

Files are read from the installed package by path, so nothing is ever downloaded.
"""

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from parure_export.demo.painting import Floats, Frame

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
# The portrait is 512 x 512; crops may reach past its edge by this much.
_MARGIN = 64

# (left, top, right, bottom) on the untouched portrait, in pixels.
ASTRONAUT_NECKLACE_BOX = (182.0, 172.0, 262.0, 240.0)
ASTRONAUT_EARRING_BOX = (257.0, 128.0, 284.0, 166.0)


@dataclass(frozen=True)
class Place:
    """Where an ornament may sit on the portrait: origin, unit length and tilt in pixels and radians."""

    x: float
    y: float
    unit: float
    angle: float = 0.0


NECKLACE_PLACES = (Place(221.5, 177, 35.5, 0.06), Place(221.5, 177, 35.5, 0.06), Place(222, 192, 60, 0.09))
EARRING_PLACES = (Place(270.5, 133.5, 34), Place(177.5, 128.5, 34))


@cache
def photograph(name: str, flipped: bool = False) -> Image.Image:
    with as_file(files("skimage") / "data" / name) as path, Image.open(path) as opened:
        picture = opened.convert("RGB")
    if flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return picture


@cache
def _portrait(flipped: bool) -> Image.Image:
    pixels = np.asarray(photograph("astronaut.png", flipped))
    return Image.fromarray(np.pad(pixels, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), mode="edge"))


def portrait_crop(frame: Frame, place: Place, flipped: bool, size: int) -> NDArray[np.uint8]:
    """The square of the portrait that `frame` shows at `size` pixels with `place` in the frame's origin.

    Raises ValueError where that square leaves the padded portrait.
    """
    zoom = frame.scale / place.unit
    x = 512 - place.x if flipped else place.x
    left, top = x - frame.x / zoom + _MARGIN, place.y - frame.y / zoom + _MARGIN
    side = size / zoom
    limit = 512 + 2 * _MARGIN - side
    if not (0 <= left <= limit and 0 <= top <= limit):
        raise ValueError(f"the crop of side {side:.0f} at ({left:.0f}, {top:.0f}) leaves the padded portrait")
    box = (left, top, left + side, top + side)
    return np.asarray(_portrait(flipped).resize((size, size), Image.Resampling.BICUBIC, box))


def background(rng: np.random.Generator, size: int) -> Floats:
    """A [size, size, 3] picture in 0..255."""
    draw = rng.random()
    if draw < 0.4:
        return _photo_background(rng, size)
    if draw < 0.6:
        return _gradient(rng, size)
    if draw < 0.8:
        return _blur(rng, size, int(rng.integers(3, 8)))
    return _cloth(rng, size)


def studio(rng: np.random.Generator, size: int) -> Floats:
    """A product shot's plain light background."""
    tint = (rng.uniform(232, 250) + rng.uniform(-5, 5, 3)).astype(np.float32)
    fall = np.linspace(1.0, rng.uniform(0.94, 1.0), size, dtype=np.float32)
    return np.clip(tint * fall[:, None, None] * np.ones((1, size, 1), np.float32), 0, 255)


def _photo_background(rng: np.random.Generator, size: int) -> Floats:
    picture = photograph(PHOTOGRAPHS[rng.integers(len(PHOTOGRAPHS))], bool(rng.integers(2)))
    side = float(rng.uniform(0.3, 0.95)) * min(picture.size)
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    box = (float(left), float(top), float(left) + side, float(top) + side)
    crop = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box), np.float32)
    return crop * np.float32(rng.uniform(0.7, 1.05))


def _colours(rng: np.random.Generator, count: int) -> Floats:
    """Muted colours, [count, 3] in 0..255."""
    vivid = rng.uniform(20, 245, (count, 3))
    picture: Floats = (0.5 * vivid + 0.5 * vivid.mean(axis=1, keepdims=True)).astype(np.float32)
    return picture


def _gradient(rng: np.random.Generator, size: int) -> Floats:
    angle = rng.uniform(0, 2 * math.pi)
    axis = np.linspace(-0.7, 0.7, size, dtype=np.float32)
    ramp = np.clip(0.5 + axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle), 0, 1)[..., None]
    first, second = _colours(rng, 2)
    picture: Floats = (first * (1 - ramp) + second * ramp).astype(np.float32)
    return picture


def _blur(rng: np.random.Generator, size: int, cells: int) -> Floats:
    seeds = _colours(rng, cells * cells).reshape(cells, cells, 3).astype(np.uint8)
    return np.asarray(Image.fromarray(seeds).resize((size, size), Image.Resampling.BICUBIC), np.float32)


def _cloth(rng: np.random.Generator, size: int) -> Floats:
    """A woven colour with soft folds."""
    tone = _colours(rng, 1)[0]
    folds = rng.integers(60, 200, (5, 5), dtype=np.uint8)
    smooth = Image.fromarray(folds).resize((size, size), Image.Resampling.BICUBIC)
    shade = np.asarray(smooth, np.float32) / 160 + 0.2
    at = np.arange(size, dtype=np.float32) * np.float32(128 / size)
    weave = 1 + 0.05 * np.sin(2.1 * at)[None, :] * np.sin(2.1 * at)[:, None]
    picture: Floats = np.clip(tone * (shade * weave)[..., None], 0, 255)
    return picture
