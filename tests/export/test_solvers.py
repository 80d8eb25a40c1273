"""Our tables against diffusers' own stepping, at every step of every run."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parure.errors import SolverError
from parure.solver import Solver, SolverGrid, SolverSpec, SolverState
from parure_export.solver_grid import _quick_sigma_to_t, set_run
from parure_export.solvers import SOLVERS, TOLERANCE, build_scheduler, compile_solver, verify_solver

TRAINING = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
# What Stable Diffusion 1.5 ships, and what this repository's demo is trained with.
SD15 = {
    **TRAINING,
    "_class_name": "PNDMScheduler",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}
DEMO = {**TRAINING, "_class_name": "DDPMScheduler", "timestep_spacing": "trailing", "variance_type": "fixed_small"}
STEP_COUNTS = (1, 2, 3, 4, 5, 10, 20, 25, 50, 100, 333, 1000)
SHAPE = (1, 4, 3, 3)
PAIRS = [(name, prediction) for name, source in SOLVERS.items() for prediction in source.predictions]


@cache
def _compiled(name: str, config: str) -> tuple[SolverSpec, Solver]:
    spec, grid = compile_solver(name, json.loads(config))
    return spec, Solver(spec, grid)


def compiled(name: str, config: dict[str, Any]) -> tuple[SolverSpec, Solver]:
    return _compiled(name, json.dumps(config, sort_keys=True))


def model(sample: np.ndarray, t: float) -> np.ndarray:
    """A smooth, nonlinear stand-in for the U-Net."""
    return np.tanh(0.3 * sample + t / 1000).astype(sample.dtype)


class Draws:
    """The same fresh noise for both sides: step k's is a function of k alone."""

    def __init__(self, seed: int) -> None:
        self.seed, self.k = seed, -1

    def at(self, k: int) -> np.ndarray:
        return np.random.default_rng([self.seed, k]).standard_normal(SHAPE)

    def randn_tensor(self, shape: Any, *, dtype: torch.dtype, **_: Any) -> torch.Tensor:
        return torch.from_numpy(self.at(self.k)).to(dtype)


def theirs(
    scheduler: Any, steps: int, dtype: torch.dtype, start: np.ndarray, draws: Draws, **step_options: Any
) -> Iterator[tuple[float, np.ndarray, np.ndarray | None]]:
    """diffusers' own run: (timestep, sample after the step, predicted picture where it tells) of every step.

    In float64, its noise levels are held in float64 too, once its grid is made.
    """
    scheduler = deepcopy(scheduler)
    set_run(scheduler, steps)
    for levels in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, levels):
            setattr(scheduler, levels, getattr(scheduler, levels).to(dtype))
    sample = torch.from_numpy(start).to(dtype) * scheduler.init_noise_sigma
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(inspect.getmodule(type(scheduler)), "randn_tensor"):
            patch.setattr(inspect.getmodule(type(scheduler)), "randn_tensor", draws.randn_tensor)
        for draws.k, t in enumerate(scheduler.timesteps):
            output = torch.from_numpy(model(scheduler.scale_model_input(sample, t).numpy(), float(t)))
            x0 = picture(scheduler, output, sample)
            result = scheduler.step(output, t, sample, **step_options)
            sample = result.prev_sample
            x0 = getattr(result, "pred_original_sample", getattr(result, "denoised", x0))
            yield float(t), sample.numpy().copy(), None if x0 is None else x0.numpy().copy()


def picture(scheduler: Any, output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor | None:
    """The predicted picture of multistep schedulers, which know it once they have begun and do not return it."""
    if getattr(scheduler, "step_index", None) is None or not scheduler.config.get("predict_x0", True):
        return None
    return scheduler.convert_model_output(output, sample=sample) if hasattr(scheduler, "convert_model_output") else None


def largest_difference(
    solver: Solver, scheduler: Any, steps: int, dtype: torch.dtype = torch.float64, **step_options: Any
) -> float:
    """max|ours - theirs| / max|theirs| over all steps; both sides feed on their own samples."""
    table, draws = solver.table(steps), Draws(steps)
    start = np.random.default_rng(steps).standard_normal(SHAPE).astype(np.float32)
    state, differences = SolverState(table, start), []
    for k, (t, sample, x0) in enumerate(theirs(scheduler, steps, dtype, start, draws, **step_options)):
        assert table.timesteps[k] == np.float32(t)
        output = model(state.model_input(k), t)
        if x0 is not None:  # a difference of two terms; what rounding leaves grows with the larger
            size = np.abs(state.sample * table.rows.denoise[k, 0]).max() + np.abs(x0).max()
            differences.append(np.abs(state.table.denoised(k, state.sample, output) - x0).max() / size)
        state.step(k, output, draws.at(k) if table.uses_noise else None)
        differences.append(np.abs(state.sample - sample).max() / np.abs(sample).max())
    assert k + 1 == len(table.timesteps)
    return float(np.max(differences))  # NaN where any is


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_every_step_equals_diffusers(name: str, prediction: str) -> None:
    config = {**DEMO, "prediction_type": prediction}
    spec, solver = compiled(name, config)
    scheduler = build_scheduler(name, config)
    for steps in (min(steps, spec.max_steps) for steps in STEP_COUNTS):
        assert largest_difference(solver, scheduler, steps) <= TOLERANCE, steps


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_step_count_equals_diffusers(name: str, data: st.DataObject) -> None:
    spec, solver = compiled(name, SD15)
    steps = data.draw(st.integers(1, min(spec.max_steps, 400)))
    assert largest_difference(solver, build_scheduler(name, SD15), steps) <= TOLERANCE


@pytest.mark.parametrize(("name", "prediction"), PAIRS)
def test_every_step_equals_diffusers_in_float32_as_it_ships(name: str, prediction: str) -> None:
    """Up to 100 steps; towards 1000, DDIM's float32 coefficients put diffusers itself 1.4e-5 off."""
    config = {**DEMO, "prediction_type": prediction}
    spec, solver = compiled(name, config)
    for steps in (steps for steps in (1, 2, 7, 20, 50, 100) if steps <= spec.max_steps):
        assert largest_difference(solver, build_scheduler(name, config), steps, torch.float32) <= TOLERANCE, steps


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc", "euler", "euler-ancestral"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_spacings_and_zero_terminal_snr_equal_diffusers(name: str, spacing: str, zero_snr: bool) -> None:
    config = {**TRAINING, "prediction_type": "v_prediction", "timestep_spacing": spacing}
    config["rescale_betas_zero_snr"] = zero_snr
    _, solver = compiled(name, config)
    for steps in (1, 2, 9, 30, 61, 200):
        assert largest_difference(solver, build_scheduler(name, config), steps) <= TOLERANCE, steps


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("ddim", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("ddim", {"num_train_timesteps": 20, "trained_betas": [0.01 * (i + 1) for i in range(20)]}),
    ("pndm", {"timestep_spacing": "linspace"}),
    ("pndm", {"set_alpha_to_one": True, "timestep_spacing": "leading"}),
    ("lcm", {"original_inference_steps": 100, "set_alpha_to_one": False, "timestep_scaling": 5.0}),
    ("lcm", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("dpmpp-2m-karras", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("dpmpp-2m", {"solver_type": "heun"}),
    ("dpmpp-2m", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    ("dpmpp-2m", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("dpmpp-2m", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}),
    ("unipc", {"solver_order": 1}),
    ("unipc", {"solver_order": 3}),
    ("unipc", {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("unipc", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ("unipc", {"disable_corrector": [0, 2]}),
    ("euler", {"use_karras_sigmas": True}),
    ("euler", {"interpolation_type": "log_linear"}),
    ("euler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    ("euler", {"final_sigmas_type": "sigma_min", "beta_schedule": "linear"}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_options_of_the_checkpoint_are_honoured(name: str, options: dict[str, Any]) -> None:
    config = {**TRAINING, "num_train_timesteps": 200, **options}
    spec, solver = compiled(name, config)
    for steps in (steps for steps in (1, 2, 3, 8, 14, 15, 50) if steps <= spec.max_steps):
        assert largest_difference(solver, build_scheduler(name, config), steps) <= TOLERANCE, steps


def test_ddim_with_eta_equals_diffusers() -> None:
    spec, solver = compiled("ddim", DEMO)
    solver = Solver(spec.model_copy(update={"options": {"eta": 0.7}}), solver.grid)
    for steps in (1, 5, 40):
        assert largest_difference(solver, build_scheduler("ddim", DEMO), steps, eta=0.7) <= TOLERANCE


@pytest.mark.parametrize("config", [SD15, DEMO], ids=["sd15", "demo"])
@pytest.mark.parametrize("name", SOLVERS)
def test_every_step_count_has_a_finite_table_of_falling_timesteps(name: str, config: dict[str, Any]) -> None:
    spec, solver = compiled(name, {"prediction_type": "epsilon", **config})
    for steps in range(1, spec.max_steps + 1):
        table = solver.table(steps)
        assert len(table.timesteps) == (steps + 1 if name == "pndm" and steps > 1 else steps)
        assert all(np.isfinite(array).all() for array in vars(table.rows).values())
        assert (np.diff(table.timesteps) <= 0).all()
        assert table.timesteps.min() >= 0


@pytest.mark.parametrize(
    ("name", "largest"),
    [("ddim", 999), ("pndm", 999), ("dpmpp-2m", 998), ("unipc", 998)],
)
def test_the_step_counts_left_out_are_those_that_diffusers_cannot_run(name: str, largest: int) -> None:
    spec, _ = compiled(name, SD15)
    assert spec.max_steps == largest
    start = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    scheduler = build_scheduler(name, SD15)
    try:
        samples = [sample for _, sample, _ in theirs(scheduler, largest + 1, torch.float32, start, Draws(0))]
    except (IndexError, ValueError) as error:
        assert str(error)
    else:
        assert not np.isfinite(samples[-1]).all()


def test_lcm_walks_on_the_distilled_grid_up_to_its_50_steps_and_on_all_timesteps_beyond() -> None:
    _, solver = compiled("lcm", SD15)
    assert set(solver.table(50).timesteps) == set(range(19, 1000, 20))
    beyond = solver.table(51).timesteps
    assert len(beyond) == 51 and beyond[0] == 999
    assert np.array_equal(solver.table(1000).timesteps, np.arange(999, -1, -1))


def test_the_evaluation_at_timestep_minus_1_that_trailing_spacing_adds_is_dropped() -> None:
    for name in ("ddim", "pndm", "dpmpp-2m", "unipc", "euler"):
        scheduler = build_scheduler(name, DEMO)
        scheduler.set_timesteps(61)
        if scheduler.timesteps[-1] != -1:
            pytest.skip(f"this diffusers has {len(scheduler.timesteps)} timesteps for 61 steps")
        _, solver = compiled(name, DEMO)
        assert np.array_equal(solver.table(61).timesteps, scheduler.timesteps[:-1].float().numpy())


def test_the_timesteps_of_karras_sigmas_are_bit_for_bit_diffusers_own() -> None:
    for scheduler_class in (diffusers.EulerDiscreteScheduler, diffusers.DPMSolverMultistepScheduler):
        scheduler = scheduler_class(use_karras_sigmas=True)
        quick = scheduler_class(use_karras_sigmas=True)
        quick._sigma_to_t = _quick_sigma_to_t()
        for steps in (1, 2, 20, 37):
            scheduler.set_timesteps(steps)
            quick.set_timesteps(steps)
            assert torch.equal(scheduler.timesteps, quick.timesteps)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_grid_is_small_and_survives_the_bundle(name: str, tmp_path: Path) -> None:
    spec, solver = compiled(name, {**DEMO, "prediction_type": "epsilon"})
    path = tmp_path / spec.grid
    path.parent.mkdir()
    solver.grid.save(path)
    assert path.stat().st_size < (2_100_000 if name == "dpmpp-2m-karras" else 100_000)
    again = Solver.load(spec, tmp_path)
    for steps in (1, 13, spec.max_steps):
        table, expected = again.table(steps), solver.table(steps)
        for field, array in vars(expected.rows).items():
            assert np.array_equal(vars(table.rows)[field], array)
        assert np.array_equal(table.timesteps, expected.timesteps)
        assert table.initial_noise_scale == expected.initial_noise_scale


def test_a_table_of_1000_steps_is_little_work() -> None:
    _, solver = compiled("unipc", {**DEMO, "prediction_type": "epsilon"})
    since = time.perf_counter()
    Solver(solver.spec, solver.grid).table(1000)
    assert time.perf_counter() - since < 5  # milliseconds, on a machine that does nothing else


@pytest.mark.parametrize("name", SOLVERS)
def test_verification_passes_what_is_right(name: str) -> None:
    spec, solver = compiled(name, {**DEMO, "prediction_type": "epsilon"})
    assert verify_solver(spec, solver.grid, build_scheduler(name, DEMO)) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dpmpp-2m", {"heun": True}),
        ("unipc", {"bh1": True, "order": 3}),
        ("unipc", {"disable_corrector": "1"}),
        ("lcm", {"timestep_scaling": 0.1}),
        ("ddim", {"eta": 0.2}),
    ],
)
def test_verification_notices_a_wrong_rule(name: str, options: dict[str, Any]) -> None:
    spec, solver = compiled(name, {**DEMO, "prediction_type": "epsilon"})
    wrong = spec.model_copy(update={"options": {**spec.options, **options}})
    assert verify_solver(wrong, solver.grid, build_scheduler(name, DEMO)) > TOLERANCE


def test_verification_notices_another_grid() -> None:
    spec, _ = compiled("ddim", {**DEMO, "prediction_type": "epsilon"})
    _, other = compiled("ddim", SD15)
    spec = spec.model_copy(update={"max_steps": 999})
    assert verify_solver(spec, other.grid, build_scheduler("ddim", DEMO), [20]) > TOLERANCE


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("heun", {}, "solver 'heun' is not known; expected one of ddim, "),
    ("ddim", {"clip_sample": True}, "clip_sample is on, .* set clip_sample to false in scheduler_config.json"),
    ("lcm", {"thresholding": True}, "thresholding is on"),
    ("dpmpp-2m", {"thresholding": True}, "thresholding is on"),
    ("dpmpp-2m", {"variance_type": "learned"}, "variance_type is 'learned'"),
    ("dpmpp-2m", {"use_flow_sigmas": True}, "use_flow_sigmas is set"),
    ("unipc", {"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
    ("unipc", {"solver_order": 4}, "solver_order is 4; expected 1, 2 or 3"),
    ("unipc", {"lower_order_final": False}, "no finite step"),
    ("unipc", {"predict_x0": False}, "no finite step"),
    ("unipc", {"solver_type": "bh1"}, "bh1 has no finite last step to final_sigmas_type zero; set solver_type to bh2"),
    ("pndm", {"prediction_type": "sample"}, "prediction_type is 'sample'; .* leave this solver out"),
    ("euler-ancestral", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
    ("pndm", {"rescale_betas_zero_snr": True}, "trained with rescale_betas_zero_snr, which .* does not know"),
    ("pndm", {"skip_prk_steps": False}, "skip_prk_steps is false, expected true"),
    ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "no finite step"),
    ("ddim", {"beta_schedule": "sigmoid"}, "refuses the checkpoint's scheduler_config.json: sigmoid"),
    ("euler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "Only one of"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_no_table_can_express_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SolverError, match=message):
        compile_solver(name, {**TRAINING, "num_train_timesteps": 100, **options})


def test_a_configuration_without_a_noise_schedule_is_refused() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    with pytest.raises(
        SolverError, match=r"\(FlowMatchEulerDiscreteScheduler\) lacks beta_end, beta_schedule, beta_start"
    ):
        compile_solver("euler", config)


def test_clipping_is_off_where_the_checkpoint_does_not_mention_it() -> None:
    config = {key: value for key, value in TRAINING.items() if key != "clip_sample"}
    assert build_scheduler("ddim", config).config.clip_sample is False


def test_other_options_become_what_diffusers_makes_of_them() -> None:
    ours = build_scheduler("unipc", SD15).config
    own = diffusers.UniPCMultistepScheduler.from_config(dict(SD15)).config
    assert {key: ours[key] for key in own} == dict(own)


def test_a_solver_grid_is_what_compile_returns() -> None:
    spec, grid = compile_solver("lcm", DEMO)
    assert isinstance(grid, SolverGrid)
    assert (spec.grid, spec.rule, spec.prediction_type, spec.max_steps) == ("solvers/lcm.npz", "lcm", "epsilon", 1000)
