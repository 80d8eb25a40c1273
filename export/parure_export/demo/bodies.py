"""Bodies drawn from signed distances: forearm and hand, fingers, neck and shoulders, side of a head.

Every body is drawn in the body units of `ornaments.worn_parts`, so the frame that places the ornament
places the body too. All randomness that a body needs is drawn in its `random_*` part, before painting.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from parure_export.demo.ornaments import Kind
from parure_export.demo.painting import LIGHT, Floats, Frame

SKIN_TONES = np.array(
    [
        [250, 220, 198],
        [240, 196, 164],
        [224, 172, 132],
        [198, 138, 98],
        [152, 98, 66],
        [104, 66, 46],
        [72, 46, 34],
    ],
    np.float32,
)
HAIR_TONES = np.array([[38, 28, 24], [84, 54, 34], [140, 96, 54], [206, 172, 110], [150, 70, 36]], np.float32)


@dataclass(frozen=True)
class Look:
    """What varies from person to person; `side` is +1 or -1, `shape` holds numbers in 0..1."""

    skin: Floats
    hair: Floats
    cloth: Floats
    side: int
    shape: tuple[float, float, float, float]
    texture_seed: int


def random_look(rng: np.random.Generator) -> Look:
    at = float(rng.uniform(0, len(SKIN_TONES) - 1))
    low = int(at)
    skin = SKIN_TONES[low] + (at - low) * (SKIN_TONES[low + 1] - SKIN_TONES[low])
    a, b, c, d = (float(x) for x in rng.random(4))
    return Look(
        skin=(skin + rng.uniform(-6, 6, 3)).astype(np.float32),
        hair=HAIR_TONES[rng.integers(len(HAIR_TONES))],
        cloth=rng.uniform(25, 235, 3).astype(np.float32),
        side=1 if rng.random() < 0.5 else -1,
        shape=(a, b, c, d),
        texture_seed=int(rng.integers(2**31)),
    )


def draw_body(kind: Kind, look: Look, background: Floats, frame: Frame) -> NDArray[np.uint8]:
    """The body of `kind` over `background` ([H, W, 3], 0..255), without any ornament."""
    height, width = background.shape[:2]
    u, v = frame.local_grid(height, width)
    painter = {"bracelet": _arm, "ring": _fingers, "necklace": _bust, "earring": _head_side}[kind]
    picture = painter(look, background, u, v, frame)
    grain = np.random.default_rng(look.texture_seed).standard_normal((height, width), np.float32)
    return np.clip(picture + 2.2 * grain[..., None], 0, 255).astype(np.uint8)


def _solid(picture: Floats, sdf: Floats, colour: Floats, frame: Frame, roundness: float) -> Floats:
    """Paints the inside of `sdf` (body units) as a rounded body lit from the common direction."""
    coverage = np.clip(0.5 - sdf * frame.scale, 0, 1)
    depth = np.clip(-sdf / np.float32(roundness), 0, 1)
    relief = np.float32(roundness * frame.scale * 0.8) * np.sqrt(depth * (2 - depth) + np.float32(1e-4))
    slope_y, slope_x = np.gradient(relief)
    lit = (LIGHT[2] - slope_x * LIGHT[0] - slope_y * LIGHT[1]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    shade = 0.5 + 0.58 * np.maximum(0, lit)
    mix = coverage[..., None]
    solid: Floats = picture * (1 - mix) + (shade[..., None] * colour) * mix
    return solid


def _union(*sdfs: Floats) -> Floats:
    return reduce(np.minimum, sdfs)


def _blend(first: Floats, second: Floats, softness: float) -> Floats:
    """Smooth union."""
    near = np.clip(0.5 + 0.5 * (second - first) / np.float32(softness), 0, 1)
    blended: Floats = second * (1 - near) + first * near - np.float32(softness) * near * (1 - near)
    return blended


def _ellipse(u: Floats, v: Floats, at: tuple[float, float], half: tuple[float, float]) -> Floats:
    level = np.sqrt(((u - at[0]) / half[0]) ** 2 + ((v - at[1]) / half[1]) ** 2)
    return ((level - 1) * min(half)).astype(np.float32)


def _capsule(u: Floats, v: Floats, a: tuple[float, float], b: tuple[float, float], radius: float) -> Floats:
    run_u, run_v = b[0] - a[0], b[1] - a[1]
    t = np.clip(((u - a[0]) * run_u + (v - a[1]) * run_v) / (run_u**2 + run_v**2), 0, 1)
    return (np.hypot(u - a[0] - t * run_u, v - a[1] - t * run_v) - radius).astype(np.float32)


def _arm(look: Look, background: Floats, u: Floats, v: Floats, frame: Frame) -> Floats:
    a = v * look.side
    grow = 0.05 + 0.12 * look.shape[0]
    palm = 0.78 * np.clip((a - 1.7) / 1.6, 0, 1) ** 2 * (3 - 2 * np.clip((a - 1.7) / 1.6, 0, 1))
    half = 1 + grow * np.maximum(0, -a) + palm
    limb = np.maximum(np.abs(u) - half, a - 4.6).astype(np.float32)
    picture = background
    if float(a.max()) > 2.2:
        thumb = _capsule(u, a, (1.2, 2.8), (2.7, 4.7), 0.46)
        picture = _solid(picture, thumb, look.skin, frame, 0.46)
        picture = _solid(picture, limb, look.skin, frame, 1.0)
        for index, reach in enumerate((6.6, 7.3, 7.6, 7.0)):
            at = -1.34 + 0.89 * index
            finger = _capsule(u, a, (at, 4.1), (at * 1.1, reach), 0.43)
            picture = _solid(picture, finger, look.skin * (0.97 + 0.02 * index), frame, 0.43)
        return picture
    return _solid(picture, limb, look.skin, frame, 1.0)


def _fingers(look: Look, background: Floats, u: Floats, v: Floats, frame: Frame) -> Floats:
    a = v * look.side
    place = int(look.shape[0] * 4)
    lengths = (3.4, 4.6, 5.0, 4.0)
    palm_u = np.maximum(np.abs(u + (place - 1.5) * 2.15) - 3.2, 0)
    palm_a = np.maximum(np.abs(a - 8.6) - 4.4, 0)
    hand = (np.hypot(palm_u, palm_a) - 1.0).astype(np.float32)
    tips: list[tuple[float, float]] = []
    fingers: list[Floats] = []
    for index in range(4):
        at = (index - place) * (2.12 + 0.3 * look.shape[1])
        tips.append((at * (1.0 + 0.25 * look.shape[2]), 0.6 + 0.45 * lengths[place] - lengths[index]))
        fingers.append(_capsule(u, a, (at * 0.92, 7.0), tips[-1], 1.0 if index == place else 0.97))
    picture = _solid(background, _blend(_union(*fingers), hand, 0.8), look.skin, frame, 1.0)
    for at, reach in tips:
        nail = _ellipse(u, a, (at, reach - 0.25), (0.5, 0.62))
        picture = _solid(picture, nail, look.skin * 0.72 + 62, frame, 0.12)
    return picture


def _bust(look: Look, background: Floats, u: Floats, v: Floats, frame: Frame) -> Floats:
    across = np.abs(u)
    hair = _blend(
        _ellipse(u, v, (0, -3.3), (1.75, 2.2)),
        _capsule(u, v, (0, -2.6), (0, -0.9 + 1.5 * look.shape[0]), 1.5),
        0.3,
    )
    slope = 0.3 + 0.2 * look.shape[1]
    shoulders = np.maximum((0.35 + slope * (across - 1) - v) * 0.9, across - 4.2).astype(np.float32)
    neck = np.maximum(across - 1, v - 2).astype(np.float32)
    neck = np.maximum(neck, -2.5 - v).astype(np.float32)
    body = _blend(neck, shoulders, 0.5)
    picture = _solid(background, hair, look.hair, frame, 0.8)
    picture = _solid(picture, body, look.skin, frame, 0.9)
    low = 0.55 + 2.3 * look.shape[2]
    reach = 1.35 + 0.7 * look.shape[3]
    neckline = np.where(across < reach, low * (1 - (across / reach) ** 2), -9).astype(np.float32)
    cloth = np.maximum((neckline - v) * 0.7, body - 0.06).astype(np.float32)
    folds = 1 + 0.06 * np.sin(5 * u + 2 * v + 9 * look.shape[0])
    picture = _solid(picture, cloth, look.cloth, frame, 0.25) if look.shape[3] < 0.85 else picture
    picture = np.where((cloth < 0)[..., None] & (look.shape[3] < 0.85), picture * folds[..., None], picture)
    return _face(look, picture.astype(np.float32), u, v, frame, (0, -2.75), 1.0)


def _face(
    look: Look, picture: Floats, u: Floats, v: Floats, frame: Frame, at: tuple[float, float], size: float
) -> Floats:
    """A plain face, 2.7 x 3.6 units at size 1, in front of what is there."""
    u, v = (u - at[0]) / np.float32(size), (v - at[1]) / np.float32(size)
    frame = Frame(frame.x, frame.y, frame.scale * size, frame.angle)
    face = _ellipse(u, v, (0, 0), (1.35, 1.85))
    picture = _solid(picture, face, look.skin * 1.03, frame, 0.9)
    if float(v.min()) > 1.5 or float(v.max()) < -1.9:
        return picture
    fringe = np.maximum(face - 0.06, v + 1.0 + 0.3 * look.shape[1] + 0.2 * u).astype(np.float32)
    picture = _solid(picture, fringe, look.hair, frame, 0.4)
    for sign in (-1, 1):
        eye = _ellipse(u, v, (0.55 * sign, -0.25), (0.22, 0.1))
        picture = _solid(picture, eye, np.array([240, 238, 234], np.float32), frame, 0.1)
        iris = _ellipse(u, v, (0.55 * sign, -0.25), (0.1, 0.1))
        picture = _solid(picture, iris, look.hair * 0.6, frame, 0.05)
        brow = _capsule(u, v, (0.34 * sign, -0.54), (0.76 * sign, -0.5), 0.04)
        picture = _solid(picture, brow, look.hair * 0.8, frame, 0.3)
    nose = _ellipse(u, v, (0, 0.42), (0.24, 0.16))
    picture = _solid(picture, nose, look.skin * 0.96, frame, 0.3)
    lips = _ellipse(u, v, (0, 0.95), (0.42, 0.13))
    return _solid(picture, lips, look.skin * np.array([0.86, 0.58, 0.58], np.float32), frame, 0.4)


def _head_side(look: Look, background: Floats, u: Floats, v: Floats, frame: Frame) -> Floats:
    ear = 0.75 + 0.55 * look.shape[0]
    u = u * look.side
    hair = _ellipse(u, v, (2.3 * ear, -2.1 * ear), (2.9 * ear, 2.9 * ear))
    neck = np.maximum(np.abs(u - 2.3 * ear) - 1.45 * ear, 0.4 - v).astype(np.float32)
    shoulders = ((3.2 * ear + 0.3 * np.abs(u - 2.3 * ear) - v) * 0.9).astype(np.float32)
    body = _blend(neck, shoulders, 0.5)
    picture = _solid(background, hair, look.hair, frame, 0.9)
    if look.shape[2] < 0.5:
        low = (0.2 + 5 * look.shape[2]) * ear
        behind = _capsule(u, v, (0.5 * ear, -1.5 * ear), (0.9 * ear, low), 0.75 * ear)
        picture = _solid(picture, behind, look.hair, frame, 0.7)
    picture = _solid(picture, body, look.skin * 0.93, frame, 1.2)
    cloth = np.maximum(shoulders + 0.25, body).astype(np.float32)
    picture = _solid(picture, cloth, look.cloth, frame, 0.4)
    picture = _face(look, picture, u, v, frame, (2.25 * ear, -0.8 * ear), 1.62 * ear)
    outer = _ellipse(u, v, (-0.06 * ear, -0.78 * ear), (0.42 * ear, 0.88 * ear))
    picture = _solid(picture, outer, look.skin, frame, 0.3)
    inner = _ellipse(u, v, (-0.02 * ear, -0.95 * ear), (0.22 * ear, 0.5 * ear))
    return _solid(picture, inner, look.skin * 0.84, frame, 0.07)
