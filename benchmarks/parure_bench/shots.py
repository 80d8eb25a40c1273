"""The pictures that a benchmark of the loop is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parure.geometry import Box
from parure.image import Source, load_image

SIDE = 512


@dataclass(frozen=True)
class Shot:
    """The same pictures for every peer."""

    photo: Source
    ornament: Source
    box: Box


def given_shot(photo: str, ornament: str, box: str) -> Shot:
    """Files, decoded once: reading them is not what is measured. Raises `ImageError`, `BoxError`."""
    return Shot(load_image(photo, subject="photo"), load_image(ornament, subject="ornament"), Box.parse(box))


def drawn_shot() -> Shot:
    """A smooth photo with some texture, and a ring on white, both of 512 px."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    texture = np.random.default_rng(0).integers(0, 12, (SIDE, SIDE))
    photo = np.stack([rows // 3, columns // 3 + rows // 8, 120 + texture], axis=2).astype(np.uint8)
    ring = np.abs(np.hypot(rows - SIDE / 2, columns - SIDE / 2) - SIDE / 3) < SIDE / 16
    ornament = np.where(ring[..., None], np.array([200, 150, 60]), 250).astype(np.uint8)
    return Shot(photo, ornament, Box(180, 170, 340, 300))
