"""What a caller asks for, read and checked before any work is done: `Asked` -> `Request`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parure.errors import BoxError, ImageError, RequestError
from parure.executor import FloatArray
from parure.geometry import Box, Region, crop_region
from parure.image import Mask, Pixels, Source, load_image, load_mask
from parure.loop import LoopOptions
from parure.manifest import Geometry, Manifest
from parure.modes import Mode, read_mode

SEED_LIMIT = 2**64


@dataclass(frozen=True)
class Asked:
    """A request as it came. None: what the bundle says.

    With `photo_size`, (height, width), `photo` is not the photo but already the crop of its region at the
    model's size; `box` still lies in the pixels of that photo.
    """

    photo: Source
    ornament: Source
    box: Box | tuple[float, float, float, float]
    ornament_mask: Source | None = None
    steps: int | None = None
    seed: int = 0
    solver: str | None = None
    guidance: float | None = None
    mask_loop: bool = True
    photo_size: tuple[int, int] | None = None
    mode: str | Mode | None = None


@dataclass(frozen=True)
class Request:
    """A request whose every field has been read and checked. `photo` is what `asked.photo` held."""

    asked: Asked
    photo: Pixels
    ornament: Pixels
    ornament_mask: Mask | None
    region: Region
    solver: str
    steps: int
    seed: int
    options: LoopOptions

    def crop(self, size: int) -> FloatArray:
        """What the model sees of the photo: float32 [size, size, 3] in 0..1, a whole number of 255ths."""
        if self.asked.photo_size is not None:
            return self.photo.astype(np.float32) / np.float32(255)
        return self.region.crop(self.photo, size)


def read_request(asked: Asked, manifest: Manifest) -> Request:
    """Raises `RequestError`, `ImageError`, `BoxError`."""
    loop, geometry = manifest.loop, manifest.geometry
    solver = asked.solver or loop.default_solver
    steps = loop.default_steps if asked.steps is None else asked.steps
    _check_steps(solver, steps, manifest)
    guidance = loop.default_guidance if asked.guidance is None else asked.guidance
    _check_guidance(guidance, loop.guidance)
    if isinstance(asked.seed, bool) or not isinstance(asked.seed, int) or not 0 <= asked.seed < SEED_LIMIT:
        raise RequestError(f"seed is {asked.seed!r}; expected a whole number from 0 to 2**64 - 1")
    mode = read_mode(asked.mode, manifest)
    box = _as_box(asked.box)
    photo = load_image(asked.photo, subject="photo")
    ornament = load_image(asked.ornament, subject="ornament")
    mask = None
    if asked.ornament_mask is not None:
        shape = (ornament.shape[0], ornament.shape[1])
        mask = load_mask(asked.ornament_mask, shape=shape, subject="ornament mask")
    if asked.photo_size is not None:
        _check_crop(photo, geometry.size)
    return Request(
        asked=asked,
        photo=photo,
        ornament=ornament,
        ornament_mask=mask,
        region=_region(box, asked.photo_size or photo.shape, geometry),
        solver=solver,
        steps=steps,
        seed=asked.seed,
        options=LoopOptions(guidance, asked.mask_loop, mode),
    )


def encoded(source: Source | None) -> bytes | None:
    """The bytes of a picture that came encoded: as bytes, or as a file."""
    if isinstance(source, bytes):
        return source
    return Path(source).read_bytes() if isinstance(source, str | os.PathLike) else None


def _check_steps(solver: str, steps: int, manifest: Manifest) -> None:
    known = {spec.name: spec for spec in manifest.solvers}
    if solver not in known:
        raise RequestError(f"solver {solver!r} is not in this bundle; it has {', '.join(sorted(known))}")
    limit = known[solver].max_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= limit:
        raise RequestError(f"steps is {steps!r}; expected a whole number from 1 to {limit}")


def _check_guidance(guidance: float, form: str) -> None:
    if not np.isfinite(guidance) or guidance < 0:
        raise RequestError(f"guidance is {guidance!r}; expected a finite number from 0 on (1 switches it off)")
    if form == "none" and guidance != 1.0:
        raise RequestError(f"guidance is {guidance!r}, but this bundle's model was not trained for guidance; use 1")


def _check_crop(photo: Pixels, size: int) -> None:
    if photo.shape[:2] != (size, size):
        height, width = photo.shape[:2]
        raise ImageError(
            f"photo is {width} x {height} pixels; expected {size} x {size}, the model's crop, since photo_size is "
            "given; send the crop, or leave photo_size out"
        )


def _as_box(box: Box | tuple[float, float, float, float]) -> Box:
    if isinstance(box, Box):
        return box
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError) as error:
        raise BoxError(f"box is {box!r}; expected four numbers, left, top, right, bottom, in photo pixels") from error
    return Box(left, top, right, bottom)


def _region(box: Box, shape: tuple[int, ...], geometry: Geometry) -> Region:
    """The region of `box`; raises `BoxError` also for a box so narrow that its crop holds none of it."""
    region = crop_region(box, shape, geometry.enlarge)
    if min(box.width, box.height) * geometry.latent_size < region.side:
        longest = geometry.latent_size / geometry.enlarge
        raise BoxError(
            f"box {box} is {box.width:g} x {box.height:g} pixels, so narrow that the model cannot see it; expected "
            f"a longer side of at most {longest:.0f} x the shorter one; draw it wider"
        )
    return region
