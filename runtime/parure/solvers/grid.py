"""The noise levels of every run, as export read them from a diffusers scheduler."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parure.errors import BundleError

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """The noise levels of one run of `steps` steps, which evaluates the U-Net K times.

    timesteps [K], what the U-Net is given; sigma [K] and next_sigma [K], the levels of z_k and z_{k+1}.
    A level is Karras' sigma: z = x0 + sigma * noise, up to the solver's own scale of z. It runs from 0, a
    clean picture, to infinity, pure noise (zero terminal SNR).
    """

    steps: int
    timesteps: Values
    sigma: Values
    next_sigma: Values


@dataclass(frozen=True)
class SolverGrid:
    """The noise levels of all runs, of 1, 2, ..., max_steps steps, one run after the other.

    evaluations [max_steps]: K of each run. initial_noise_scale [max_steps]: z_0 = scale * noise. sigmas [L]:
    a table of noise levels. timesteps, source, target [sum of K]: what the U-Net is given at each evaluation,
    and where in `sigmas` the levels of z_k and z_{k+1} stand; a place between two entries is interpolated
    linearly, in the table's precision, as diffusers does for timesteps between two training timesteps.
    """

    evaluations: NDArray[np.int64]
    initial_noise_scale: Values
    sigmas: NDArray[np.floating[Any]]
    timesteps: Values
    source: Values
    target: Values

    @property
    def max_steps(self) -> int:
        return len(self.evaluations)

    def levels(self, steps: int) -> Levels:
        """The levels of the run of `steps` steps, 1 <= steps <= max_steps."""
        start = int(self.evaluations[: steps - 1].sum())
        run = slice(start, start + int(self.evaluations[steps - 1]))
        return Levels(steps, self.timesteps[run], self._sigma(self.source[run]), self._sigma(self.target[run]))

    def _sigma(self, places: Values) -> Values:
        first, last = int(places.min()), int(np.ceil(places.max()))  # tables are long, runs are short
        sigma = np.interp(places, np.arange(first, last + 1), self.sigmas[first : last + 1])
        return sigma.astype(self.sigmas.dtype).astype(np.float64)

    def save(self, path: Path) -> None:
        """Write a compressed npz; equal grids give equal bytes.

        `source` is left empty where it equals `timesteps`, `target` counts from the next evaluation's source,
        and whole numbers are stored as differences: regular grids then need a few kilobytes.
        """
        same = np.array_equal(self.source, self.timesteps)
        with path.open("wb") as stream:
            np.savez_compressed(
                stream,
                evaluations=self.evaluations,
                initial_noise_scale=self.initial_noise_scale,
                sigmas=self.sigmas,
                timesteps=_pack(self.timesteps),
                source=_pack(self.source[:0] if same else self.source),
                target=_pack(self.target - _next(self.source)),
            )

    @classmethod
    def load(cls, path: Path) -> SolverGrid:
        """Read what `save` wrote; raises `BundleError` for anything else."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                stored = {name: archive[name] for name in archive.files}
            timesteps = _unpack(stored["timesteps"])
            source = _unpack(stored["source"]) if stored["source"].size else timesteps
            target = _unpack(stored["target"]) + _next(source)
            grid = cls(
                evaluations=stored["evaluations"].astype(np.int64),
                initial_noise_scale=stored["initial_noise_scale"].astype(np.float64),
                sigmas=stored["sigmas"],
                timesteps=timesteps,
                source=source,
                target=target,
            )
            grid._check()
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{path} is not a solver's grid ({error}); export the bundle again") from error
        return grid

    def _check(self) -> None:
        flat = (self.timesteps, self.source, self.target)
        if any(array.shape != (int(self.evaluations.sum()),) for array in flat):
            raise ValueError("its arrays do not have one entry per evaluation")
        if self.initial_noise_scale.shape != self.evaluations.shape or self.evaluations.min(initial=1) < 1:
            raise ValueError("its runs are incomplete")
        places = np.concatenate([self.source, self.target])
        if not (np.all(places >= 0) and np.all(places <= len(self.sigmas) - 1)):
            raise ValueError("it points outside its table of noise levels")


def _next(source: Values) -> Values:
    """The source of the following evaluation; none follows the very last."""
    return np.append(source[1:], 0.0)


def _pack(values: Values) -> NDArray[Any]:
    """Whole numbers as int32 differences, which compress well; anything else as float32, which must be exact."""
    whole = np.rint(values)
    if np.array_equal(whole, values):
        return np.diff(whole.astype(np.int32), prepend=np.int32(0))
    packed = values.astype(np.float32)
    if not np.array_equal(packed, values):
        raise ValueError("a grid holds places that float32 cannot represent")
    return packed


def _unpack(stored: NDArray[Any]) -> Values:
    if stored.dtype.kind == "i":
        return np.cumsum(stored, dtype=np.int64).astype(np.float64)
    return stored.astype(np.float64)
