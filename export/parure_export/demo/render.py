"""Draws try-on triplets: a photo, a reference picture of an ornament, and the photo wearing it.

Everything follows from the seed. Crops have the geometry that the loop sees (AnyDoor's scheme): a square
around the box's centre whose side is 1.5 times the box's longer side.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from parure_export.demo import scenes
from parure_export.demo.bodies import draw_body, random_look
from parure_export.demo.ornaments import (
    KINDS,
    WORN_DEPTH,
    Extent,
    Kind,
    Ornament,
    extent_of,
    random_ornament,
    reference_parts,
    worn_parts,
)
from parure_export.demo.painting import Frame, Layer, Part
from parure_export.demo.scenes import ASTRONAUT_EARRING_BOX, ASTRONAUT_NECKLACE_BOX

__all__ = [
    "ASTRONAUT_EARRING_BOX",
    "ASTRONAUT_NECKLACE_BOX",
    "KINDS",
    "Kind",
    "Scene",
    "Triplet",
    "render_scene",
    "render_triplet",
]

ENLARGEMENT = 1.5
BOX_SLACK = 0.12
PORTRAIT_SHARE = 0.3


@dataclass(frozen=True)
class Triplet:
    """One example at crop size S; pictures are uint8 [S, S, 3], masks float32 [S, S] in 0..1.

    `target` equals `photo` wherever `wearing_mask` is 0. `box` is (left, top, right, bottom) in pixels.
    """

    kind: Kind
    photo: NDArray[np.uint8]
    target: NDArray[np.uint8]
    ornament: NDArray[np.uint8]
    wearing_mask: NDArray[np.float32]
    reference_mask: NDArray[np.float32]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Scene:
    """A whole photograph [H, W, 3] with and without the ornament; the box is in its pixels."""

    kind: Kind
    photo: NDArray[np.uint8]
    target: NDArray[np.uint8]
    ornament: NDArray[np.uint8]
    wearing_mask: NDArray[np.float32]
    reference_mask: NDArray[np.float32]
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class _Pose:
    """The worn parts, how they are turned, and the coarse box around them in turned body units."""

    parts: list[Part]
    angle: float
    box: Extent

    def frame(self, centre: tuple[float, float], longer_side: float) -> Frame:
        """Places the box's centre at `centre` and makes its longer side `longer_side` pixels."""
        left, top, right, bottom = self.box
        scale = longer_side / max(right - left, bottom - top)
        x, y = centre[0] - scale * (left + right) / 2, centre[1] - scale * (top + bottom) / 2
        return Frame(x, y, scale, self.angle)

    def box_pixels(self, frame: Frame) -> tuple[float, float, float, float]:
        left, top, right, bottom = (frame.scale * side for side in self.box)
        return frame.x + left, frame.y + top, frame.x + right, frame.y + bottom


def render_triplet(seed: int, kind: Kind | None = None, size: int = 128) -> Triplet:
    """One training example; without a `kind`, seeds cycle through the four kinds."""
    kind = kind or KINDS[seed % len(KINDS)]
    rng = np.random.default_rng([seed, KINDS.index(kind), 0])
    ornament = random_ornament(kind, rng)
    centre, longer_side = (size / 2, size / 2), size / ENLARGEMENT
    if kind in ("necklace", "earring") and rng.random() < PORTRAIT_SHARE:
        pose, place, flipped = _portrait_pose(ornament, rng)
        frame = pose.frame(centre, longer_side)
        photo = _brighten(scenes.portrait_crop(frame, place, flipped, size), rng)
    else:
        pose = _random_pose(ornament, rng)
        frame = pose.frame(centre, longer_side)
        photo = draw_body(kind, random_look(rng), scenes.background(rng, size), frame)
    layer = Layer(size, size)
    layer.paint(pose.parts, frame)
    reference, reference_mask = _render_reference(ornament, rng, size)
    return Triplet(kind, photo, layer.over(photo), reference, layer.coverage, reference_mask, pose.box_pixels(frame))


def render_scene(kind: Kind, seed: int, size: int = 512) -> Scene:
    """A whole picture; the box's longer side is a quarter to a half of `size`, and its crop lies inside."""
    rng = np.random.default_rng([seed, KINDS.index(kind), 1])
    ornament = random_ornament(kind, rng)
    pose, look = _random_pose(ornament, rng), random_look(rng)
    longest = {"bracelet": 0.34, "ring": 0.34, "necklace": 0.45, "earring": 0.3}[kind]
    longer_side = size * float(rng.uniform(0.25, longest))
    room = (size - ENLARGEMENT * longer_side) / 2
    x, y = rng.uniform(-0.35, 0.35, 2) * room
    if kind == "earring":
        x, y = -look.side * 0.55 * room, y
    if kind == "necklace":
        y = abs(y)
    frame = pose.frame((size / 2 + float(x), size / 2 + float(y)), longer_side)
    photo = draw_body(kind, look, scenes.background(rng, size), frame)
    layer = Layer(size, size)
    layer.paint(pose.parts, frame)
    reference, reference_mask = _render_reference(ornament, rng, size)
    return Scene(kind, photo, layer.over(photo), reference, layer.coverage, reference_mask, pose.box_pixels(frame))


def _random_pose(ornament: Ornament, rng: np.random.Generator) -> _Pose:
    if ornament.kind in ("bracelet", "ring"):
        # Any direction but the horizontal, where "bulges towards the bottom" would say nothing.
        low, high = (-50, 50) if rng.random() < 0.6 else (50, 80)
        angle = math.radians(float(rng.uniform(low, high)) * float(rng.choice((-1, 1))))
        return _pose(ornament, WORN_DEPTH, angle, rng)
    tilt = math.radians(rng.uniform(-12, 12)) if ornament.kind == "necklace" else 0.0
    return _pose(ornament, float(rng.uniform(0.6, 1.7)), tilt, rng)


def _portrait_pose(ornament: Ornament, rng: np.random.Generator) -> tuple[_Pose, scenes.Place, bool]:
    """A place on the astronaut's portrait, jittered, and the pose that fits there."""
    flipped = bool(rng.integers(2))
    jitter = rng.uniform(-1, 1, 2)
    if ornament.kind == "necklace":
        index = int(rng.integers(len(scenes.NECKLACE_PLACES)))
        base = scenes.NECKLACE_PLACES[index]
        unit = base.unit * float(rng.uniform(0.95, 1.08))
        place = scenes.Place(base.x + 2 * jitter[0], base.y + 3 * jitter[1], unit)
        depth = float(rng.uniform(0.7, 1.6) if unit < 45 else rng.uniform(0.55, 1.1))
        return _pose(ornament, depth, -base.angle if flipped else base.angle, rng), place, flipped
    base = scenes.EARRING_PLACES[rng.integers(len(scenes.EARRING_PLACES))]
    place = scenes.Place(base.x + jitter[0], base.y + jitter[1], base.unit * float(rng.uniform(0.75, 1.3)))
    return _pose(ornament, 0.0, 0.0, rng), place, flipped


def _pose(ornament: Ornament, depth: float, angle: float, rng: np.random.Generator) -> _Pose:
    parts, _ = worn_parts(ornament, depth)
    left, top, right, bottom = extent_of(parts, angle)
    slack = rng.uniform(0.01, BOX_SLACK, 4)
    wide, tall = right - left, bottom - top
    box = (left - slack[0] * wide, top - slack[1] * tall, right + slack[2] * wide, bottom + slack[3] * tall)
    return _Pose(parts, angle, box)


def _render_reference(
    ornament: Ornament, rng: np.random.Generator, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The ornament alone on a light background, its longer side about 80 % of the frame."""
    angle = math.radians(rng.uniform(-15, 15))
    parts = reference_parts(ornament, float(rng.uniform(0.5, 0.8)))
    left, top, right, bottom = extent_of(parts, angle)
    scale = 0.8 * float(rng.uniform(0.92, 1.05)) * size / max(right - left, bottom - top)
    frame = Frame(size / 2 - scale * (left + right) / 2, size / 2 - scale * (top + bottom) / 2, scale, angle)
    layer = Layer(size, size)
    layer.paint(parts, frame)
    cast = Image.fromarray((layer.coverage * 255).astype(np.uint8))
    shadow = cast.filter(ImageFilter.GaussianBlur(size / 32))
    dim = 1 - 0.28 * np.roll(np.asarray(shadow, np.float32) / 255, (size // 32, size // 64), (0, 1))
    plain = np.clip(scenes.studio(rng, size) * dim[..., None], 0, 255).astype(np.uint8)
    return layer.over(plain), layer.coverage


def _brighten(photo: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    gain = rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, 3)
    return np.clip(photo * gain, 0, 255).astype(np.uint8)
