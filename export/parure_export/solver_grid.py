"""Reads the noise levels of every run out of a diffusers scheduler, with its spacing, offsets and final levels."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parure.errors import SolverError
from parure.solvers.grid import SolverGrid, Values


def read_grid(scheduler: Any, rule: str) -> SolverGrid:
    """The grid of a diffusers scheduler, for 1, 2, ... steps up to the last that it can set up.

    Its `_sigma_to_t` is replaced by an equal one; use another instance for sampling.
    """
    if hasattr(scheduler, "_sigma_to_t"):
        scheduler._sigma_to_t = _quick_sigma_to_t()
    runs = list(_runs(scheduler))
    if not runs:
        raise SolverError(f"diffusers' {type(scheduler).__name__} cannot run a single step with this configuration")
    if hasattr(scheduler, "sigmas"):
        return _grid_of_sigmas(scheduler, runs)
    return _grid_of_timesteps(rule, scheduler, runs)


def set_run(scheduler: Any, steps: int) -> None:
    """`scheduler.set_timesteps(steps)`, ready for the first step, without two accidents of diffusers.

    LCM runs of more steps than the distilled grid has (50) walk on all training timesteps instead.
    With `trailing` spacing the rounding of `np.arange` adds, for some step counts (61, 103, ...), an evaluation
    at timestep -1 that spoils the picture; it is dropped. And a first timestep that occurs twice (Karras sigmas,
    many steps) makes diffusers skip an evaluation unless it is told to begin at the first.
    """
    distilled = getattr(scheduler.config, "original_inference_steps", steps)
    if steps > distilled:
        scheduler.set_timesteps(steps, original_inference_steps=scheduler.config.num_train_timesteps)
    else:
        scheduler.set_timesteps(steps)
    if scheduler.timesteps[-1] == -1:
        scheduler.timesteps = scheduler.timesteps[:-1]
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


@dataclass(frozen=True)
class _Run:
    """What a scheduler says about one run: timesteps [K], and sigmas [K + 1] where it has any."""

    steps: int
    timesteps: NDArray[np.float64]
    sigmas: NDArray[np.float32] | None
    initial_noise_scale: float


def _runs(scheduler: Any) -> Iterator[_Run]:
    """Every run from 1 step on, until diffusers itself refuses one."""
    for steps in range(1, scheduler.config.num_train_timesteps + 1):
        try:
            set_run(scheduler, steps)
        except (ValueError, IndexError):
            return
        timesteps = scheduler.timesteps.numpy().astype(np.float64)
        sigmas = scheduler.sigmas.numpy()[: len(timesteps) + 1] if hasattr(scheduler, "sigmas") else None
        if sigmas is None and not 0 <= timesteps.min() <= timesteps.max() < scheduler.config.num_train_timesteps:
            return  # steps_offset moved a timestep to where alphas_cumprod has no entry
        yield _Run(steps, timesteps, sigmas, float(scheduler.init_noise_sigma))


def _grid_of_sigmas(scheduler: Any, runs: list[_Run]) -> SolverGrid:
    """Schedulers that walk along sigmas: from one to the next.

    Where all of them are training levels, or lie between two at the timestep, those are the table; else
    (Karras) the table holds the sigmas of every run.
    """
    timesteps = np.concatenate([run.timesteps for run in runs])
    sigmas = [run.sigmas for run in runs if run.sigmas is not None]
    training = (((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod) ** 0.5).numpy()
    table = np.append(training, sigmas[0][-1])
    places = np.clip(timesteps, 0, len(training) - 1)
    expected = np.interp(places, np.arange(len(table)), table).astype(np.float32)
    last = np.cumsum([len(run.timesteps) for run in runs]) - 1
    if np.array_equal(expected, np.concatenate([run[:-1] for run in sigmas])) and len({run[-1] for run in sigmas}) == 1:
        source, target = places, np.append(places[1:], 0.0)
        target[last] = len(training)
    else:
        table = np.concatenate(sigmas)
        source = np.delete(np.arange(len(table)), last + np.arange(1, len(runs) + 1)).astype(np.float64)
        target = source + 1
    return _grid(runs, table, source, target)


def _grid_of_timesteps(rule: str, scheduler: Any, runs: list[_Run]) -> SolverGrid:
    """Schedulers that look alphas_cumprod up at timesteps, which differ in where they look for the next level."""
    training = scheduler.alphas_cumprod.double().numpy()
    alphas_cumprod = np.append(training, float(scheduler.final_alpha_cumprod))
    with np.errstate(divide="ignore"):
        table = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    walks = [_walk(rule, run, len(training)) for run in runs]
    source, target = (np.concatenate(places) for places in zip(*walks, strict=True))
    return _grid(runs, table, source, np.where(target < 0, len(training), target))


def _walk(rule: str, run: _Run, training_timesteps: int) -> tuple[Values, Values]:
    """Where each step comes from and goes to, in timesteps; negative means the final level."""
    source = run.timesteps
    if rule == "lcm":
        return source, np.append(source[1:], source[-1])
    stride = training_timesteps // run.steps
    target = source - stride
    if rule == "plms" and len(source) > 1:  # evaluation 1 takes the first step again
        source, target = source.copy(), target.copy()
        source[1], target[1] = source[1] + stride, source[1]
    return source, target


def _grid(runs: list[_Run], table: NDArray[Any], source: Values, target: Values) -> SolverGrid:
    return SolverGrid(
        evaluations=np.array([len(run.timesteps) for run in runs], dtype=np.int64),
        initial_noise_scale=np.array([run.initial_noise_scale for run in runs]),
        sigmas=table,
        timesteps=np.concatenate([run.timesteps for run in runs]),
        source=source,
        target=target,
    )


def _quick_sigma_to_t() -> Callable[[np.float64, NDArray[np.float32]], float]:
    """The very numbers of diffusers' `_sigma_to_t`, by bisection: all runs together need half a million.

    numpy 1 rounds that function's intermediate results to float32, numpy 2 does not; so does this.
    """
    logs: list[float] = []
    rounded: type[np.floating[Any]] = np.float64

    def sigma_to_t(sigma: np.float64, log_sigmas: NDArray[np.float32]) -> float:
        nonlocal rounded
        if not logs:
            logs.extend(log_sigmas.tolist())
            rounded = (log_sigmas[:1] - sigma).dtype.type
        log_sigma = rounded(np.log(max(float(sigma), 1e-10)))
        low = min(max(bisect_right(logs, float(log_sigma)) - 1, 0), len(logs) - 2)
        w = (rounded(logs[low]) - log_sigma) / np.float32(logs[low] - logs[low + 1])
        w = rounded(min(max(float(w), 0.0), 1.0))
        return float(rounded(1) - w) * low + float(w) * (low + 1)

    return sigma_to_t
