"""Antialiased, shaded jewellery primitives: one stamp (bead, link, gem) or one stroke (solid band).

Shapes live in local units; a `Frame` places them on a pixel grid, so every painter works at any resolution.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
StampShape = Literal["sphere", "faceted", "cushion", "disc", "barrel", "link", "hoop", "teardrop"]

LIGHT = np.array([-0.44, -0.58, 0.685], np.float32)
_HALFWAY = (LIGHT + np.array([0, 0, 1], np.float32)) / np.linalg.norm(LIGHT + np.array([0, 0, 1], np.float32))
_EIGHTH = np.float32(math.pi / 4)


@dataclass(frozen=True)
class Frame:
    """A similarity: local (u, v) -> pixels, `angle` turning the picture's x axis towards its y axis."""

    x: float
    y: float
    scale: float
    angle: float = 0.0

    def to_pixels(self, u: float, v: float) -> tuple[float, float]:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return self.x + self.scale * (cos * u - sin * v), self.y + self.scale * (sin * u + cos * v)

    def local_grid(self, height: int, width: int, left: int = 0, top: int = 0) -> tuple[Floats, Floats]:
        """Local coordinates of the centres of a window of pixels, two [height, width] arrays."""
        dx = ((np.arange(left, left + width, dtype=np.float32) + 0.5 - self.x) / self.scale)[None, :]
        dy = ((np.arange(top, top + height, dtype=np.float32) + 0.5 - self.y) / self.scale)[:, None]
        cos, sin = np.float32(math.cos(self.angle)), np.float32(math.sin(self.angle))
        return cos * dx + sin * dy, cos * dy - sin * dx


@dataclass(frozen=True)
class Material:
    """What a part is made of: colour in 0..1 and how it reflects."""

    colour: tuple[float, float, float]
    metal: bool = False
    gloss: float = 0.8


@dataclass(frozen=True)
class Stamp:
    """One repeated part: centre, half sizes and turn in local units; `half_u` lies along `angle`."""

    shape: StampShape
    u: float
    v: float
    half_u: float
    half_v: float
    angle: float
    material: Material


@dataclass(frozen=True)
class Stroke:
    """A solid band along a curve: the ellipse (1, depth), its front half, or the hanging parabola.

    `stripes` alternates the two materials that many times around the full curve; `twist` slants them.
    """

    curve: Literal["ellipse", "front", "hanging"]
    depth: float
    half_thickness: float
    materials: tuple[Material, ...]
    stripes: int
    twist: float


Part = Stamp | Stroke


class Layer:
    """A transparent picture that parts are painted on: premultiplied colour and coverage."""

    def __init__(self, height: int, width: int) -> None:
        self.colour: Floats = np.zeros((height, width, 3), np.float32)
        self.coverage: Floats = np.zeros((height, width), np.float32)

    def paint(self, parts: list[Part], frame: Frame) -> None:
        for part in parts:
            if isinstance(part, Stamp):
                self._stamp(part, frame)
            else:
                self._stroke(part, frame)

    def over(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Composes the layer over `picture`; pixels without coverage are returned unchanged."""
        shown = picture * (1.0 - self.coverage[..., None]) + 255.0 * self.colour
        composed: NDArray[np.uint8] = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
        return composed

    def _stamp(self, stamp: Stamp, frame: Frame) -> None:
        centre_x, centre_y = frame.to_pixels(stamp.u, stamp.v)
        own = Frame(centre_x, centre_y, frame.scale, frame.angle + stamp.angle)
        reach = frame.scale * math.hypot(stamp.half_u, stamp.half_v) + 1.0
        if stamp.shape in ("sphere", "disc", "barrel", "link", "hoop", "faceted"):
            reach = frame.scale * max(stamp.half_u, stamp.half_v) * 1.09 + 1.0
        height, width = self.coverage.shape
        left, right = max(0, math.floor(centre_x - reach)), min(width, math.ceil(centre_x + reach))
        top, bottom = max(0, math.floor(centre_y - reach)), min(height, math.ceil(centre_y + reach))
        if left >= right or top >= bottom:
            return
        u, v = own.local_grid(bottom - top, right - left, left, top)
        u, v = u / np.float32(stamp.half_u), v / np.float32(stamp.half_v)
        radius = frame.scale * min(stamp.half_u, stamp.half_v)
        coverage, shaded = _shade_stamp(stamp, u, v, radius, own.angle)
        self._blend(slice(top, bottom), slice(left, right), coverage, shaded)

    def _stroke(self, stroke: Stroke, frame: Frame) -> None:
        u, v = frame.local_grid(*self.coverage.shape)
        distance, along, normal_u, normal_v = _stroke_field(stroke, u, v)
        coverage = np.clip((stroke.half_thickness - np.abs(distance)) * frame.scale + 0.5, 0, 1)
        if stroke.curve == "front":
            coverage = coverage * np.clip(v * frame.scale + 0.5, 0, 1)
        if stroke.curve == "hanging":
            coverage = coverage * np.clip((1 - np.abs(along) / np.pi) * frame.scale + 0.5, 0, 1)
        rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
        if rows.size == 0:
            return
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        across = np.clip(distance[window] / np.float32(stroke.half_thickness), -1, 1)
        cos, sin = np.float32(math.cos(frame.angle)), np.float32(math.sin(frame.angle))
        normal_u, normal_v = normal_u[window] * across, normal_v[window] * across
        rise = np.sqrt(np.maximum(0, 1 - across * across))
        normal_x, normal_y = cos * normal_u - sin * normal_v, sin * normal_u + cos * normal_v
        shaded = _shade(stroke.materials[0], normal_x, normal_y, rise)
        if len(stroke.materials) > 1:
            phase = np.sin(stroke.stripes * along[window] + np.float32(stroke.twist) * across)
            second = _shade(stroke.materials[1], normal_x, normal_y, rise)
            mix = np.clip(0.5 + 4.0 * phase, 0, 1)[..., None]
            shaded = shaded * (1 - mix) + second * mix
        self._blend(*window, coverage[window], shaded)

    def _blend(self, rows: slice, columns: slice, coverage: Floats, colour: Floats) -> None:
        kept = 1.0 - coverage
        under = self.colour[rows, columns] * kept[..., None]
        self.colour[rows, columns] = under + colour * coverage[..., None]
        self.coverage[rows, columns] = self.coverage[rows, columns] * kept + coverage


def _stroke_field(stroke: Stroke, u: Floats, v: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Signed distance to the curve, angle along it, and the curve's normal, in local units."""
    depth = np.float32(stroke.depth)
    if stroke.curve == "hanging":
        foot = u
        for _ in range(4):  # Gauss-Newton towards the nearest point (foot, depth (1 - foot^2))
            slope = -2 * depth * foot
            step = (u - foot + (v - depth * (1 - foot * foot)) * slope) / (1 + slope * slope)
            foot = np.clip(foot + np.clip(step, -0.3, 0.3), -1.3, 1.3)
        slope = -2 * depth * foot
        length = np.sqrt(1 + slope * slope)
        distance = ((v - depth * (1 - foot * foot)) - slope * (u - foot)) / length
        return distance, np.pi * foot, -slope / length, 1 / length
    cos, sin = _ellipse_foot(np.abs(u), np.abs(v), depth)
    cos, sin = np.copysign(cos, u), np.copysign(sin, v)
    outside = np.sign(u * u + (v / depth) ** 2 - 1)
    length = np.hypot(cos, sin / depth)
    distance = np.hypot(u - cos, v - depth * sin) * outside
    return distance, np.arctan2(sin, cos), cos / length, sin / (depth * length)


def _ellipse_foot(u: Floats, v: Floats, depth: np.float32) -> tuple[Floats, Floats]:
    """Cosine and sine of the parameter of the nearest point on the ellipse (1, depth), for u, v >= 0.

    Each round replaces the ellipse by its circle of curvature at the current point; three are exact enough.
    """
    cos = sin = np.full_like(u, np.sqrt(0.5))
    focus = 1 - depth * depth
    for _ in range(3):
        centre_u, centre_v = focus * cos * cos * cos, -focus / depth * sin * sin * sin
        radius = np.hypot(cos - centre_u, depth * sin - centre_v)
        to_u, to_v = u - centre_u, v - centre_v
        reach = radius / np.maximum(np.hypot(to_u, to_v), 1e-6)
        cos = np.clip(to_u * reach + centre_u, 0, 1)
        sin = np.clip((to_v * reach + centre_v) / depth, 0, 1)
        length = np.maximum(np.hypot(cos, sin), 1e-6)
        cos, sin = cos / length, sin / length
    return cos, sin


def _shade_stamp(stamp: Stamp, u: Floats, v: Floats, radius: float, angle: float) -> tuple[Floats, Floats]:
    """Coverage [h, w] and colour [h, w, 3] of a stamp whose outline is the unit shape in (u, v)."""
    if stamp.shape == "teardrop":
        u = u / np.maximum(0.56 + 0.44 * v, 0.05)
    if stamp.shape == "barrel":
        q = np.power(u**6 + v**6, np.float32(1 / 6))
        u = u * 0.35
    elif stamp.shape == "cushion":
        q = np.power(u**4 + v**4, np.float32(0.25))
    else:
        q = np.sqrt(u * u + v * v)
    if stamp.shape == "faceted":
        turn = np.arctan2(v, u)
        q = q * np.cos(turn - np.round(turn / _EIGHTH) * _EIGHTH) / np.cos(_EIGHTH / 2)
    coverage = np.clip((1 - q) * radius + 0.5, 0, 1)
    if stamp.shape in ("link", "hoop"):
        wall = 0.32 if stamp.shape == "link" else 0.19
        ring = (q - (1 - wall)) / wall
        coverage = coverage * np.clip((1 + ring) * wall * radius + 0.5, 0, 1)
        ring = np.clip(ring, -1, 1) / np.maximum(q, 1e-3)
        u, v = u * ring, v * ring
    flat = np.minimum(1, u * u + v * v)
    squeeze = np.sqrt(flat / np.maximum(u * u + v * v, 1e-6))
    u, v = u * squeeze, v * squeeze
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    x, y, z = cos * u - sin * v, sin * u + cos * v, np.sqrt(1 - flat)
    if stamp.shape in ("faceted", "cushion"):
        x, y, z = _facets(x, y, q)
    return coverage, _shade(stamp.material, x, y, z)


def _facets(x: Floats, y: Floats, q: Floats) -> tuple[Floats, Floats, Floats]:
    """Normals of a cut gem: a flat table, then two staggered crowns of eight planes."""
    turn = np.arctan2(y, x)
    crown = q > 0.72
    plane = np.where(crown, np.round(turn / _EIGHTH), np.round(turn / _EIGHTH - 0.5) + 0.5) * _EIGHTH
    tilt = np.where(q < 0.42, 0.08, np.where(crown, 0.85, 0.5)).astype(np.float32)
    return np.cos(plane) * tilt, np.sin(plane) * tilt, np.sqrt(1 - tilt * tilt)


def _shade(material: Material, x: Floats, y: Floats, z: Floats) -> Floats:
    """Colour of a surface with unit normals (x, y, z) under the common light, [h, w, 3] in 0..1."""
    lit = np.maximum(0, x * LIGHT[0] + y * LIGHT[1] + z * LIGHT[2])
    shine = np.maximum(0, x * _HALFWAY[0] + y * _HALFWAY[1] + z * _HALFWAY[2])
    diffuse = 0.34 + 0.72 * lit
    if material.metal:
        diffuse = 0.3 + 0.62 * lit + 0.22 * np.sin(5.5 * y + 2.0 * x)
    glint = np.float32(material.gloss) * shine ** np.float32(28)
    bounce = 0.10 * np.maximum(0, y * 0.9 + x * 0.3)
    colour = np.asarray(material.colour, np.float32)
    shaded: Floats = np.clip((diffuse + bounce)[..., None] * colour + glint[..., None], 0, 1)
    return shaded
