"""What is asked for: the user's pictures, or the demo's; and ornaments that the server has seen, or has not."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from parure.errors import InputError
from parure.geometry import Box
from parure.image import Pixels, load_image
from parure.tryon import Result, TryOn

_CORNER = 16  # parts of a side that the mark takes: it outlives resizing


@dataclass(frozen=True)
class Case:
    """One picture to ask for."""

    photo: Pixels
    ornament: Pixels
    box: Box


def cases(photo: Path | None, ornament: Path | None, box: str | None) -> list[Case]:
    """The user's picture, or those of the demo where none is named. Raises `InputError`."""
    given = {"--photo": photo, "--ornament": ornament, "--box": box}
    if photo is not None and ornament is not None and box is not None:
        return [Case(load_image(photo, subject="photo"), load_image(ornament, subject="ornament"), Box.parse(box))]
    if (missing := [name for name, value in given.items() if value is None]) and len(missing) < len(given):
        raise InputError(f"{missing[0]} is missing; give --photo, --ornament and --box, or none for the demo's")
    from parure_export.demo.showcase import demo_shots

    return [Case(shot.photo, shot.ornament, shot.box) for shot in demo_shots()]


def marked(ornament: Pixels, number: int) -> Pixels:
    """The same ornament to the eye, another one to a cache: `number` as the colour of a corner; 0 leaves it."""
    if number == 0:
        return ornament
    copy = ornament.copy()
    height, width = (max(1, side // _CORNER) for side in ornament.shape[:2])
    colour = [255 - (number >> shift & 0xFF) for shift in (0, 8, 16)]
    copy[:height, :width] = np.array(colour, np.uint8)
    return copy


class Asker:
    """Asks for the cases in turn. `ornaments` distinct ones for each; cold: one that nobody has asked for before."""

    def __init__(self, tryon: TryOn, given: list[Case], steps: int | None, ornaments: int, *, cold: bool) -> None:
        self._tryon, self._cases, self._steps = tryon, given, steps
        self._ornaments = ornaments
        self._cold = cold
        self._fresh = count(secrets.randbelow(1 << 22))  # runs differ, or the second one would be warm

    def __call__(self, number: int) -> Result:
        case = self._cases[number % len(self._cases)]
        which = 1 + next(self._fresh) if self._cold else number // len(self._cases) % self._ornaments
        return self._tryon(case.photo, marked(case.ornament, which), case.box, steps=self._steps, seed=number)

    def warm(self, say: Callable[[], None] = lambda: None) -> None:
        """Each picture once, so that models are warm, and the cache too unless it is to be cold."""
        for number in range(len(self._cases) * (1 if self._cold else self._ornaments)):
            self(number)
            say()
