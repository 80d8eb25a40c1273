"""Solvers: one recurrence of linear combinations, z_k -> z_{k+1}, with coefficients for any number of steps.

A solver is a grid (the noise levels of every run, read from a diffusers scheduler at export) and a rule (the
mathematics that turns neighbouring levels into coefficients). A table holds the coefficients of one run and is
shared; a state is one picture on its way through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from parure.errors import BundleError, SolverError
from parure.solvers.grid import SolverGrid, Values
from parure.solvers.rules import HISTORY, NOISE, RULES, Option, Prediction, Rows

__all__ = ["Solver", "SolverGrid", "SolverSpec", "SolverState", "SolverTable"]

FloatArray = NDArray[np.float32]
KEPT_TABLES = 64


class SolverSpec(BaseModel):
    """A solver as it stands in the bundle's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="what requests call it, such as `dpmpp-2m-karras`")
    rule: str = Field(description="key of the rule in `parure.solvers.rules.RULES`")
    prediction_type: Prediction
    grid: str = Field(description="bundle-relative file of the grid (npz)")
    max_steps: int = Field(ge=1)
    options: dict[str, Option] = Field(description="what the rule wants to know beyond the noise levels")


Terms = tuple[tuple[int, float], ...]
"""What a row adds up: (column, coefficient), without zeros."""


@dataclass(frozen=True)
class Evaluation:
    """The rows of one evaluation, ready to be combined."""

    input_scale: float
    denoise: Terms
    convert: Terms
    keep: Terms
    advance: Terms


@dataclass(frozen=True)
class SolverTable:
    """The coefficients of one run of `steps` steps: K U-Net evaluations (PNDM: steps + 1). Arrays are read-only.

    timesteps float32 [K]; z_0 = noise * initial_noise_scale; `uses_noise`: some step wants fresh noise. The
    rows, and the recurrence that they are the coefficients of, are those of `parure.solvers.rules`.
    """

    name: str
    steps: int
    timesteps: FloatArray
    initial_noise_scale: float
    uses_noise: bool
    rows: Rows

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """`rows`, evaluation by evaluation. What stands between two component calls runs cold, so it is kept short."""
        rows = self.rows
        sums = (map(_terms, each) for each in (rows.denoise, rows.convert, rows.keep, rows.advance))
        return tuple(map(Evaluation, rows.input_scale.tolist(), *sums))

    def denoised(self, k: int, sample: FloatArray, model_output: FloatArray) -> FloatArray:
        """The picture x0 that the model predicts at evaluation k of `sample`, z_k."""
        return _combine(self.evaluations[k].denoise, (sample, _float32(model_output)))


class Solver:
    """Makes tables, and keeps the last ones; safe to share between threads."""

    def __init__(self, spec: SolverSpec, grid: SolverGrid) -> None:
        if spec.rule not in RULES:
            raise BundleError(
                f"solver {spec.name} follows rule {spec.rule!r}; this parure knows {', '.join(sorted(RULES))}; "
                "use the version of parure that exported the bundle"
            )
        if spec.max_steps > grid.max_steps:
            raise BundleError(
                f"solver {spec.name} promises {spec.max_steps} steps, its grid {spec.grid} holds {grid.max_steps}; "
                "export the bundle again"
            )
        self.spec = spec
        self.grid = grid
        self._kept_table = lru_cache(maxsize=KEPT_TABLES)(self._table)

    @classmethod
    def load(cls, spec: SolverSpec, bundle_root: Path) -> Solver:
        """The solver of a verified bundle; raises `BundleError` where its grid is not what `spec` says."""
        inside = PurePosixPath(spec.grid)
        if inside.is_absolute() or ".." in inside.parts:
            raise BundleError(f"solver {spec.name}: file name {spec.grid!r} leaves the bundle; export it again")
        return cls(spec, SolverGrid.load(bundle_root / inside))

    def table(self, steps: int) -> SolverTable:
        """The table of a run of `steps` steps; raises `SolverError` outside 1..max_steps."""
        limit = self.spec.max_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= limit:
            raise SolverError(f"steps is {steps!r}; solver {self.spec.name} expects a whole number from 1 to {limit}")
        return self._kept_table(steps)

    def _table(self, steps: int) -> SolverTable:
        levels = self.grid.levels(steps)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rows = RULES[self.spec.rule](levels, self.spec.prediction_type, self.spec.options)
        timesteps = levels.timesteps.astype(np.float32)
        for array in (timesteps, *vars(rows).values()):
            array.setflags(write=False)
        return SolverTable(
            name=self.spec.name,
            steps=steps,
            timesteps=timesteps,
            initial_noise_scale=float(self.grid.initial_noise_scale[steps - 1]),
            uses_noise=bool(np.any(rows.advance[:, NOISE] != 0)),
            rows=rows,
        )


class SolverState:
    """One picture (or a batch of pictures at the same step) on its way from noise to latents.

    Per evaluation k = 0..K-1, in this order: `model_input(k)`, the U-Net, `step(k, output, noise)`. Arrays are
    float32 [B, C, s, s]; none that it was given or has handed out is written to.
    """

    def __init__(self, table: SolverTable, noise: FloatArray) -> None:
        """`noise` ~ N(0, 1) is scaled to z_0."""
        self.table = table
        self.sample: FloatArray = _float32(noise) * np.float32(table.initial_noise_scale)
        self._kept: FloatArray | None = None  # c_{k-1}
        self._outputs: tuple[FloatArray | None, ...] = (None,) * (HISTORY - 1)  # m_{k-1}, m_{k-2}, ...

    def model_input(self, k: int) -> FloatArray:
        """What the U-Net is given at evaluation k."""
        return _times(self.table.evaluations[k].input_scale, self.sample)

    def step(self, k: int, model_output: FloatArray, noise: FloatArray | None = None) -> None:
        """z_k -> z_{k+1}. `noise` ~ N(0, 1), fresh at every step, where the table uses it."""
        now, z = self.table.evaluations[k], self.sample
        m = _combine(now.convert, (z, _float32(model_output)))
        columns = (z, self._kept, m, *self._outputs, None if noise is None else _float32(noise))
        self._kept = _combine(now.keep, columns) if now.keep else None
        self.sample = _combine(now.advance, columns)
        self._outputs = (m, *self._outputs[:-1])


def _terms(row: Values) -> Terms:
    return tuple((column, coefficient) for column, coefficient in enumerate(row.tolist()) if coefficient != 0)


def _combine(terms: Terms, columns: Sequence[FloatArray | None]) -> FloatArray:
    """sum of coefficient * column; a column that is absent must not be among `terms`."""
    total: FloatArray | None = None
    for column, coefficient in terms:
        if (array := columns[column]) is None:
            raise ValueError("a solver's step needs a term that it was not given; pass noise where `uses_noise` is set")
        part = _times(coefficient, array)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("a solver's row is empty; export the bundle again")
    return total


def _times(coefficient: float, array: FloatArray) -> FloatArray:
    return array if coefficient == 1 else coefficient * array


def _float32(array: NDArray[np.floating[Any]]) -> FloatArray:
    return np.asarray(array, dtype=np.float32)
