"""A diffusers scheduler -> a solver of the bundle: its grid is read, its rule is known, the result is compared."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from parure.errors import SolverError
from parure.solver import Solver, SolverGrid, SolverSpec, SolverState, SolverTable
from parure.solvers.rules import Option, Prediction
from parure_export.solver_grid import read_grid, set_run

TOLERANCE = 1e-5
VERIFIED_STEP_COUNTS = (1, 2, 3, 4, 5, 10, 20, 30, 50, 100)


@dataclass(frozen=True)
class Source:
    """Where a solver comes from: the diffusers class, our rule, and what its name fixes in the configuration."""

    scheduler: str
    rule: str
    overrides: Mapping[str, Any]
    predictions: tuple[Prediction, ...] = ("epsilon", "v_prediction", "sample")


_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2}
_NO_SAMPLE: tuple[Prediction, ...] = ("epsilon", "v_prediction")

SOLVERS: Mapping[str, Source] = {
    "ddim": Source("DDIMScheduler", "ddim", {}),
    "dpmpp-2m": Source("DPMSolverMultistepScheduler", "dpmpp-2m", {**_DPMPP_2M, "use_karras_sigmas": False}),
    "dpmpp-2m-karras": Source("DPMSolverMultistepScheduler", "dpmpp-2m", {**_DPMPP_2M, "use_karras_sigmas": True}),
    "unipc": Source("UniPCMultistepScheduler", "unipc", {}),
    "euler": Source("EulerDiscreteScheduler", "euler", {}),
    "euler-ancestral": Source("EulerAncestralDiscreteScheduler", "euler-ancestral", {}, _NO_SAMPLE),
    "pndm": Source("PNDMScheduler", "plms", {"skip_prk_steps": True}, _NO_SAMPLE),
    "lcm": Source("LCMScheduler", "lcm", {}),
}


def compile_solver(name: str, scheduler_config: Mapping[str, Any]) -> tuple[SolverSpec, SolverGrid]:
    """Compile solver `name` for the scheduler that a checkpoint was trained with (`scheduler_config.json`).

    The grid holds every step count from 1 up to the largest that diffusers itself can run, at most the number
    of training timesteps. Raises `SolverError` for what no table of coefficients can express.
    """
    scheduler = build_scheduler(name, scheduler_config)
    grid = read_grid(scheduler, SOLVERS[name].rule)
    spec = SolverSpec(
        name=name,
        rule=SOLVERS[name].rule,
        prediction_type=scheduler.config.prediction_type,
        grid=f"solvers/{name}.npz",
        max_steps=grid.max_steps,
        options=_options(SOLVERS[name].rule, scheduler.config),
    )
    usable = _usable_steps(Solver(spec, grid))
    if usable < min(2, grid.max_steps):
        raise SolverError(
            f"solver {name}: diffusers' {SOLVERS[name].scheduler} has no finite step with this checkpoint's scheduler "
            f"(prediction_type {spec.prediction_type}, {_grid_options(scheduler.config)}); leave this solver out"
        )
    kept = int(grid.evaluations[:usable].sum())
    grid = replace(
        grid,
        evaluations=grid.evaluations[:usable],
        initial_noise_scale=grid.initial_noise_scale[:usable],
        timesteps=grid.timesteps[:kept],
        source=grid.source[:kept],
        target=grid.target[:kept],
    )
    return spec.model_copy(update={"max_steps": usable}), grid


def build_scheduler(name: str, scheduler_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler that solver `name` stands for: its `from_config`, and what the name fixes.

    Raises `SolverError` for an unknown name and for a configuration that no table of coefficients can express.
    """
    if name not in SOLVERS:
        raise SolverError(f"solver {name!r} is not known; expected one of {', '.join(SOLVERS)}")
    source = SOLVERS[name]
    scheduler_class = getattr(diffusers, source.scheduler)
    _check_schedule(name, scheduler_config, inspect.signature(scheduler_class).parameters)
    overrides = dict(source.overrides)
    if "clip_sample" not in scheduler_config:  # as diffusers' latent pipelines; the classes' default suits pixels
        overrides["clip_sample"] = False
    try:
        scheduler = scheduler_class.from_config(dict(scheduler_config), **overrides)
    except (TypeError, ValueError, NotImplementedError, ImportError) as error:
        raise SolverError(
            f"solver {name}: diffusers' {source.scheduler} refuses the checkpoint's scheduler_config.json: {error}"
        ) from error
    _check_expressible(name, scheduler.config)
    return scheduler


def verify_solver(
    spec: SolverSpec, grid: SolverGrid, scheduler: Any, step_counts: Iterable[int] = VERIFIED_STEP_COUNTS
) -> float:
    """The largest difference between our steps and the diffusers `scheduler`'s own, at any step of any run.

    Both run from the same noise with the same smooth, nonlinear stand-in for the U-Net. The difference is
    max|ours - theirs| / max|theirs|; export fails where it exceeds `TOLERANCE`. Step counts that the solver
    does not have are passed over.
    """
    solver = Solver(spec, grid)
    return max(_difference(solver.table(steps), scheduler) for steps in step_counts if steps <= spec.max_steps)


def _check_schedule(name: str, config: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    """Refuse configurations whose noise schedule the scheduler's class would silently replace by another."""
    needed = {"num_train_timesteps", "beta_schedule", "beta_start", "beta_end"}
    if missing := sorted(needed - set(config)):
        raise SolverError(
            f"solver {name}: the checkpoint's scheduler_config.json ({config.get('_class_name', 'no class')}) lacks "
            f"{', '.join(missing)}; solvers need the noise schedule the model was trained with; write it there"
        )
    for option in ("rescale_betas_zero_snr", "trained_betas"):
        if config.get(option) and option not in accepted:
            raise SolverError(
                f"solver {name}: the model was trained with {option}, which diffusers' {SOLVERS[name].scheduler} does "
                "not know; leave this solver out"
            )
    if name == "pndm" and config.get("skip_prk_steps") is False:
        raise SolverError("solver pndm: skip_prk_steps is false, expected true (PLMS); set it in scheduler_config.json")


def _check_expressible(name: str, config: Any) -> None:
    """Refuse what is not linear in the sample, the outputs and the noise, and what no rule covers."""
    for option in ("clip_sample", "thresholding"):
        if config.get(option):
            raise SolverError(
                f"solver {name}: {option} is on, and clipping is not linear, so no table can express it; latent "
                f"diffusion does without: set {option} to false in scheduler_config.json, or leave this solver out"
            )
    if config.get("variance_type") in ("learned", "learned_range"):
        raise SolverError(f"solver {name}: variance_type is {config['variance_type']!r}; expected a fixed one")
    for option in ("use_flow_sigmas", "use_dynamic_shifting", "solver_p"):
        if config.get(option):
            raise SolverError(f"solver {name}: {option} is set; flow matching and nested solvers are not supported")
    if SOLVERS[name].rule == "unipc" and config["solver_order"] > 3:
        raise SolverError(f"solver {name}: solver_order is {config['solver_order']}; expected 1, 2 or 3")
    if SOLVERS[name].rule == "unipc" and config["solver_type"] == "bh1" and config["final_sigmas_type"] == "zero":
        raise SolverError(
            f"solver {name}: solver_type bh1 has no finite last step to final_sigmas_type zero; set solver_type to bh2 "
            "or final_sigmas_type to sigma_min in scheduler_config.json"
        )
    if config["prediction_type"] not in SOLVERS[name].predictions:
        raise SolverError(
            f"solver {name}: prediction_type is {config['prediction_type']!r}; diffusers' {SOLVERS[name].scheduler} "
            f"offers {', '.join(SOLVERS[name].predictions)} here; leave this solver out"
        )


def _options(rule: str, config: Any) -> dict[str, Option]:
    if rule == "ddim":
        return {"eta": 0.0}
    if rule == "lcm":
        return {"timestep_scaling": float(config.timestep_scaling)}
    if rule == "dpmpp-2m":
        return {
            "lower_order_final": bool(config.lower_order_final),
            "euler_at_final": bool(config.euler_at_final),
            "heun": config.solver_type == "heun",
        }
    if rule == "unipc":
        return {
            "order": int(config.solver_order),
            "lower_order_final": bool(config.lower_order_final),
            "bh1": config.solver_type == "bh1",
            "predict_x0": bool(config.predict_x0),
            "disable_corrector": ",".join(str(index) for index in config.disable_corrector),
        }
    return {}


def _grid_options(config: Any) -> str:
    names = ("timestep_spacing", "steps_offset", "rescale_betas_zero_snr", "final_sigmas_type")
    return ", ".join(f"{name} {config[name]}" for name in names if name in config)


def _usable_steps(solver: Solver) -> int:
    """The largest step count up to which every run has finite coefficients."""
    for steps in range(1, solver.spec.max_steps + 1):
        try:
            rows = solver.table(steps).rows
        except np.linalg.LinAlgError:
            return steps - 1
        if not all(np.isfinite(array).all() for array in vars(rows).values()):
            return steps - 1
    return solver.spec.max_steps


def _difference(table: SolverTable, scheduler: Any, shape: tuple[int, ...] = (1, 4, 4, 4)) -> float:
    """The largest relative difference at any step of one run, infinite where a side is not finite.

    Both sides feed on their own samples.
    """
    start = torch.randn(shape, generator=torch.Generator().manual_seed(table.steps))
    noise = {"generator": torch.Generator().manual_seed(1)} if table.uses_noise else {}
    same_noise = torch.Generator().manual_seed(1)
    scheduler = _in_double(scheduler, table.steps)
    if not np.array_equal(table.timesteps, scheduler.timesteps.float().numpy()):
        return float("inf")
    state, theirs = SolverState(table, start.numpy()), start.double() * scheduler.init_noise_sigma
    largest = 0.0
    for k, t in enumerate(scheduler.timesteps):
        fresh = torch.randn(shape, generator=same_noise, dtype=torch.float64) if table.uses_noise else None
        output = _stand_in(scheduler.scale_model_input(theirs, t).numpy(), float(t))
        theirs = scheduler.step(torch.from_numpy(output), t, theirs, return_dict=False, **noise)[0]
        state.step(k, _stand_in(state.model_input(k), float(t)), None if fresh is None else fresh.numpy())
        difference = np.abs(state.sample - theirs.numpy()).max() / np.abs(theirs.numpy()).max()
        largest = max(largest, float(difference) if np.isfinite(difference) else float("inf"))
    return largest


def _in_double(scheduler: Any, steps: int) -> Any:
    """A copy of the scheduler, ready for a run, that computes its coefficients from its noise levels in float64.

    In float32, as it ships, diffusers' coefficients alone put it 1.4e-5 off after 1000 steps of DDIM.
    """
    scheduler = deepcopy(scheduler)
    set_run(scheduler, steps)
    for levels in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, levels):
            setattr(scheduler, levels, getattr(scheduler, levels).double())
    return scheduler


def _stand_in(sample: NDArray[Any], t: float) -> NDArray[Any]:
    return np.asarray(np.tanh(0.3 * sample + t / 1000), dtype=sample.dtype)
