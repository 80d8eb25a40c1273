"""Ornaments as data: what one is made of, and how it is laid out when worn and when pictured alone.

A worn ornament is fixed by its reference picture: curve, count and proportions never vary between the two.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from parure_export.demo.painting import Material, Part, Stamp, StampShape, Stroke

Kind = Literal["bracelet", "ring", "earring", "necklace"]
Extent = tuple[float, float, float, float]
KINDS: tuple[Kind, ...] = ("bracelet", "ring", "earring", "necklace")

# A ring around an arm or a finger is seen from this far above its plane (ellipse's depth / half width).
WORN_DEPTH = 0.3
# It lies on the skin, so it is a little wider than the limb (whose half width is 1).
WORN_SLACK = 1.03


def _stone(red: int, green: int, blue: int, gloss: float = 0.8) -> Material:
    return Material((red / 255, green / 255, blue / 255), False, gloss)


GEMS: tuple[Material, ...] = (
    _stone(224, 24, 60),  # ruby
    _stone(16, 170, 92),  # emerald
    _stone(36, 72, 214),  # sapphire
    _stone(148, 62, 206),  # amethyst
    _stone(46, 200, 196),  # turquoise
    _stone(242, 148, 22),  # amber
    _stone(30, 30, 36),  # jet
    _stone(250, 112, 92),  # coral
    _stone(245, 238, 226, 0.45),  # pearl
    _stone(252, 214, 44),  # citrine
    _stone(240, 110, 176),  # pink tourmaline
)
METALS: tuple[Material, ...] = (
    Material((1.0, 0.78, 0.26), True, 0.7),  # gold
    Material((0.86, 0.88, 0.92), True, 0.7),  # silver
    Material((0.95, 0.62, 0.5), True, 0.7),  # rose gold
)


@dataclass(frozen=True)
class Pendant:
    """The gem that hangs from a necklace or an earring or sits on a ring; `size` is its half height."""

    shape: StampShape
    size: float
    aspect: float
    material: Material


@dataclass(frozen=True)
class Ornament:
    """`half_thickness` counts in ring radii, necklace half widths or earring heights."""

    kind: Kind
    form: Literal["beads", "chain", "band", "hoop", "drop"]
    shape: StampShape
    count: int
    half_thickness: float
    materials: tuple[Material, ...]
    twist: float
    pendant: Pendant | None


def random_ornament(kind: Kind, rng: np.random.Generator) -> Ornament:
    if kind == "earring":
        return _random_earring(rng)
    form: Literal["beads", "chain", "band"] = "band"
    draw = rng.random()
    if draw < 0.75:
        form = "beads" if draw < 0.55 else "chain"
    materials = _random_materials(rng, metallic=form != "beads")
    shape: StampShape = "link"
    if form == "beads":
        shapes: tuple[StampShape, ...] = ("sphere", "sphere", "faceted", "cushion", "disc", "barrel")
        shape = shapes[rng.integers(len(shapes))]
    count = 2 * int(rng.integers(4, 13))
    if form == "chain":
        count = 2 * int(rng.integers(4, 9))
    half_thickness = math.sin(math.pi / count)
    if kind == "necklace":
        half_thickness = float(rng.uniform(0.12, 0.2)) if form != "chain" else float(rng.uniform(0.13, 0.2))
    elif form == "band":
        half_thickness = float(rng.uniform(0.11, 0.26))
    elif shape in ("disc", "barrel"):
        half_thickness = max(0.15, half_thickness)
    twist = float(rng.uniform(-3, 3))
    return Ornament(kind, form, shape, count, half_thickness, materials, twist, _random_pendant(kind, rng))


def worn_parts(ornament: Ornament, depth: float = WORN_DEPTH) -> tuple[list[Part], Extent]:
    """Parts of the worn ornament and their extent (left, top, right, bottom), both in body units.

    Body units: half the limb's or neck's width is 1 (an earring's height is 1 and its top is the origin),
    u lies across and v along the limb, downwards. `depth` is how far the curve hangs.
    """
    if ornament.kind == "earring":
        parts = _earring_parts(ornament)
    elif ornament.kind == "necklace":
        parts = _hanging_parts(ornament, depth)
    else:
        parts = [_widened(part) for part in _ring_parts(ornament, depth, front_only=True)]
    return parts, extent_of(parts)


def reference_parts(ornament: Ornament, depth: float) -> list[Part]:
    """Parts of the ornament lying alone: a whole ring seen at `depth`, a whole strand, or the earring."""
    if ornament.kind == "earring":
        return _earring_parts(ornament)
    if ornament.kind == "necklace":
        return _hanging_parts(ornament, 2 * depth)
    return _ring_parts(ornament, depth, front_only=False)


def extent_of(parts: list[Part], angle: float = 0.0) -> Extent:
    """A box (left, top, right, bottom) around the parts turned by `angle`."""
    cos, sin = math.cos(angle), math.sin(angle)
    corners: list[tuple[float, float, float, float]] = []
    for part in parts:
        for u, v, reach_x, reach_y in _outline(part, angle):
            x, y = cos * u - sin * v, sin * u + cos * v
            corners.append((x - reach_x, y - reach_y, x + reach_x, y + reach_y))
    table = np.array(corners)
    low, high = table[:, :2].min(axis=0), table[:, 2:].max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _outline(part: Part, angle: float) -> list[tuple[float, float, float, float]]:
    """Points of a part with the reach around each along the picture's x and y."""
    if isinstance(part, Stamp):
        cos, sin = math.cos(angle + part.angle), math.sin(angle + part.angle)
        wide, tall = part.half_u, part.half_v
        if part.shape in ("cushion", "barrel"):
            return [(part.u, part.v, abs(cos) * wide + abs(sin) * tall, abs(sin) * wide + abs(cos) * tall)]
        grow = 1.083 if part.shape == "faceted" else 1.0
        reach_x, reach_y = math.hypot(cos * wide, sin * tall), math.hypot(sin * wide, cos * tall)
        return [(part.u, part.v, grow * reach_x, grow * reach_y)]
    reach = part.half_thickness
    if part.curve == "hanging":
        return [(t, part.depth * (1 - t * t), reach, reach) for t in np.linspace(-1, 1, 33)]
    turns = np.linspace(0, math.pi if part.curve == "front" else 2 * math.pi, 49)
    return [(math.cos(t), part.depth * math.sin(t), reach, reach) for t in turns]


def _random_materials(rng: np.random.Generator, metallic: bool) -> tuple[Material, ...]:
    if rng.random() < (0.6 if metallic else 0.12):
        first = METALS[rng.integers(len(METALS))]
    else:
        first = GEMS[rng.integers(len(GEMS))]
    if rng.random() < 0.5:
        return (first,)
    others = [stone for stone in GEMS + METALS if stone is not first]
    return first, others[rng.integers(len(others))]


def _random_pendant(kind: Kind, rng: np.random.Generator) -> Pendant | None:
    chance = {"ring": 0.6, "necklace": 0.5, "bracelet": 0.15, "earring": 1.0}[kind]
    if rng.random() >= chance:
        return None
    shapes: tuple[StampShape, ...] = ("faceted", "cushion", "sphere")
    if kind in ("necklace", "earring"):
        shapes = (*shapes, "teardrop", "teardrop", "link")
    size = float(rng.uniform(0.28, 0.45))
    return Pendant(shapes[rng.integers(len(shapes))], size, float(rng.uniform(0.7, 1.0)), GEMS[rng.integers(len(GEMS))])


def _random_earring(rng: np.random.Generator) -> Ornament:
    forms: tuple[Literal["beads", "chain", "hoop", "drop"], ...] = ("beads", "chain", "hoop", "drop")
    form = forms[rng.integers(4)]
    materials = _random_materials(rng, metallic=form in ("chain", "hoop"))
    shapes: tuple[StampShape, ...] = ("sphere", "faceted", "cushion", "disc")
    shape: StampShape = shapes[rng.integers(4)] if form != "chain" else "link"
    count = int(rng.integers(3, 7)) if form in ("beads", "chain") else 1
    thickness = 0.5 / count if count > 1 else float(rng.uniform(0.07, 0.12))
    return Ornament("earring", form, shape, count, thickness, materials, 0.0, _random_pendant("earring", rng))


def _ring_parts(ornament: Ornament, depth: float, front_only: bool) -> list[Part]:
    parts: list[Part] = []
    if ornament.form == "band":
        curve: Literal["front", "ellipse"] = "front" if front_only else "ellipse"
        parts.append(_band(ornament, curve, depth))
    else:
        parts.extend(_ring_stamps(ornament, depth, front_only))
    gem = ornament.pendant
    if gem is not None:
        rim = ornament.materials[0]
        parts.append(Stamp("sphere", 0, depth, gem.size * gem.aspect + 0.05, gem.size + 0.05, 0, rim))
        parts.append(Stamp(gem.shape, 0, depth, gem.size * gem.aspect, gem.size, 0, gem.material))
    return parts


def _band(ornament: Ornament, curve: Literal["ellipse", "front", "hanging"], depth: float) -> Stroke:
    return Stroke(curve, depth, ornament.half_thickness, ornament.materials, ornament.count, ornament.twist)


def _ring_stamps(ornament: Ornament, depth: float, front_only: bool) -> list[Part]:
    """Beads at equal angles, the first in front; those further back are painted first."""
    turns = [(index, math.pi / 2 + 2 * math.pi * index / ornament.count) for index in range(ornament.count)]
    turns.sort(key=lambda turn: math.sin(turn[1]))
    parts: list[Part] = []
    for index, turn in turns:
        if front_only and math.sin(turn) < -1e-6:
            continue
        tangent = math.atan2(depth * math.cos(turn), -math.sin(turn))
        pitch = math.sin(math.pi / ornament.count)
        parts.append(_bead(ornament, index, math.cos(turn), depth * math.sin(turn), tangent, pitch))
    return parts


def _bead(ornament: Ornament, index: int, u: float, v: float, tangent: float, pitch: float) -> Stamp:
    material = ornament.materials[index % len(ornament.materials)]
    along, across = ornament.half_thickness, ornament.half_thickness
    if ornament.form == "chain":
        along, across = 1.3 * pitch, max(0.16, ornament.half_thickness)
    elif ornament.shape in ("disc", "barrel"):
        along = pitch
    return Stamp(ornament.shape, u, v, along, across, tangent, material)


def _hanging_parts(ornament: Ornament, depth: float) -> list[Part]:
    """Beads at equal arc lengths on the parabola from (-1, 0) through (0, depth) to (1, 0)."""
    parts: list[Part] = []
    if ornament.form == "band":
        parts.append(_band(ornament, "hanging", depth))
    else:
        t = np.linspace(0, 1, 200)
        length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(t), np.diff(depth * (1 - t * t))))])
        pitch = ornament.half_thickness * (0.6 if ornament.shape == "disc" else 1.0)
        for index in range(int(length[-1] / (2 * pitch)), -1, -1):
            u = float(np.interp(2 * pitch * index, length, t))
            for side in (-1, 1) if index else (1,):
                tangent = math.atan2(-2 * depth * u * side, 1)
                parts.append(_bead(ornament, index, side * u, depth * (1 - u * u), tangent, pitch))
    gem = ornament.pendant
    if gem is not None:
        v = depth + 0.9 * gem.size
        parts.append(Stamp(gem.shape, 0, v, gem.size * gem.aspect, gem.size, 0, gem.material))
    return parts


def _earring_parts(ornament: Ornament) -> list[Part]:
    """Everything hangs between (0, 0) and (0, 1)."""
    first, last = ornament.materials[0], ornament.materials[-1]
    half = ornament.half_thickness
    gem = ornament.pendant or Pendant("sphere", 0.3, 0.9, last)
    if ornament.form in ("beads", "chain"):
        wide = 1.2 * half if ornament.form == "chain" else half
        tall = 1.15 * half if ornament.form == "chain" else half
        rows = [tall + index * (1 - 2 * tall) / (ornament.count - 1) for index in range(ornament.count)]
        cycle = [ornament.materials[index % len(ornament.materials)] for index in range(ornament.count)]
        return [
            Stamp(ornament.shape, 0, v, max(0.11, wide), tall, 0, material)
            for v, material in zip(rows, cycle, strict=True)
        ]
    stud = Stamp("sphere", 0, half, half, half, 0, first)
    if ornament.form == "hoop":
        tall = 0.5 - half * 0.8
        ring: StampShape = "hoop" if ornament.shape in ("sphere", "disc", "cushion") else "link"
        hoop = Stamp(ring, 0, 1 - tall, tall * gem.aspect, tall, 0, first)
        bead = Stamp("sphere", 0, 1 - 2.6 * half, 1.2 * half, 1.2 * half, 0, last)
        return [hoop, stud, bead] if len(ornament.materials) > 1 else [hoop, stud]
    size = min(0.36, gem.size * 0.9)
    link = Stamp("barrel", 0, 0.5 - size + half, 0.055, 0.5 - size, 0, first)
    return [link, stud, Stamp(gem.shape, 0, 1 - size, size * gem.aspect, size, 0, gem.material)]


def _widened(part: Part) -> Part:
    """A part moved outwards, on to the skin of the limb; its own size stays."""
    if isinstance(part, Stroke):
        return part
    return Stamp(part.shape, part.u * WORN_SLACK, part.v, part.half_u, part.half_v, part.angle, part.material)
