from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from parure.errors import BundleError, RequestError, SolverError
from parure.solver import Solver, SolverGrid, SolverSpec, SolverState, SolverTable

OPTIONS = {
    "ddim": {"eta": 0.0},
    "plms": {},
    "lcm": {"timestep_scaling": 10.0},
    "euler": {},
    "euler-ancestral": {},
    "dpmpp-2m": {"lower_order_final": True, "euler_at_final": False, "heun": False},
    "unipc": {"order": 2, "lower_order_final": True, "bh1": False, "predict_x0": True, "disable_corrector": ""},
}
DETERMINISTIC = ("ddim", "euler", "dpmpp-2m", "unipc")
SHAPE = (2, 4, 3, 3)


def spec_of(rule: str, prediction: str = "epsilon", max_steps: int = 1, **options: object) -> SolverSpec:
    return SolverSpec(
        name=rule,
        rule=rule,
        prediction_type=prediction,
        grid=f"solvers/{rule}.npz",
        max_steps=max_steps,
        options={**OPTIONS[rule], **options},
    )


def grid_of(*runs: list[float], scale: float = 1.0) -> SolverGrid:
    """A grid whose run of n steps walks along the n + 1 levels of runs[n - 1]."""
    counts = np.array([len(run) - 1 for run in runs])
    table = np.concatenate([np.asarray(run, float) for run in runs])
    source = np.concatenate(
        [np.arange(count) + offset for count, offset in zip(counts, np.cumsum(counts + 1) - counts - 1, strict=True)]
    ).astype(float)
    return SolverGrid(
        evaluations=counts,
        initial_noise_scale=np.full(len(runs), scale),
        sigmas=table,
        timesteps=np.concatenate([np.linspace(999, 500, count) for count in counts]),
        source=source,
        target=source + 1,
    )


def one_run(rule: str, levels: list[float], prediction: str = "epsilon", **options: object) -> SolverTable:
    """The table of a single run along `levels`, whatever its length."""
    solver = Solver(spec_of(rule, prediction, **options), grid_of(levels))
    return solver.table(1)


def scaled(rule: str, sigma: float) -> tuple[float, float]:
    """a and s of z = a x0 + s noise: solvers of Euler's family keep a = 1."""
    return (1.0, sigma) if rule.startswith("euler") else (1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma))


def output_of(prediction: str, x0: np.ndarray, noise: np.ndarray, sigma: float) -> np.ndarray:
    """What a U-Net that knows the picture says at level sigma."""
    alpha, sigma_bar = 1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma)
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma_bar * x0}[prediction]


def close(ours: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


@st.composite
def falling_levels(draw: st.DrawFn) -> list[float]:
    """2 to 30 levels from at most 80 down to 0, neighbours at least 5 % apart."""
    ratios = draw(st.lists(st.floats(1.05, 3.0), min_size=1, max_size=30))
    sigma = [draw(st.floats(5.0, 80.0))]
    for ratio in ratios:
        sigma.append(max(sigma[-1] / ratio, 1e-3))
    return [*dict.fromkeys(sigma), 0.0]


@pytest.mark.parametrize("rule", DETERMINISTIC)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@settings(max_examples=25, deadline=None)
@given(levels=falling_levels(), seed=st.integers(0, 1000))
def test_a_model_that_knows_the_picture_is_followed_along_the_straight_path(
    rule: str, prediction: str, levels: list[float], seed: int
) -> None:
    x0, noise = np.random.default_rng(seed).standard_normal((2, *SHAPE))
    state = SolverState(one_run(rule, levels, prediction), noise)
    a, s = scaled(rule, levels[0])
    state.sample = np.float32(a * x0 + s * noise)
    for k, sigma in enumerate(levels[:-1]):
        output = output_of(prediction, x0, noise, sigma)
        close(state.table.denoised(k, state.sample, output), x0, 2e-5 * (1 + sigma))
        state.step(k, output)
        a, s = scaled(rule, levels[k + 1])
        close(state.sample, a * x0 + s * noise, 1e-4)


@pytest.mark.parametrize("rule", ["lcm", "euler-ancestral"])
def test_solvers_with_fresh_noise_end_on_the_picture_too(rule: str) -> None:
    draws = np.random.default_rng(0)
    x0, noise = draws.standard_normal((2, *SHAPE))
    levels = [14.0, 6.0, 2.5, 0.7, 0.0]
    table = one_run(rule, levels)
    assert table.uses_noise
    state = SolverState(table, noise)
    for k, sigma in enumerate(levels[:-1]):
        a, s = scaled(rule, sigma)
        state.step(k, (state.sample - a * x0) / s, draws.standard_normal(SHAPE))
    close(state.sample, x0, 1e-4)


def test_pndm_repeats_its_first_step_from_the_start_with_the_mean_of_both_outputs() -> None:
    levels = [10.0, 5.0, 2.0]
    repeated = SolverGrid(
        evaluations=np.array([3]),
        initial_noise_scale=np.ones(1),
        sigmas=np.array(levels),
        timesteps=np.array([900.0, 600.0, 600.0]),
        source=np.array([0.0, 0.0, 1.0]),
        target=np.array([1.0, 1.0, 2.0]),
    )
    noise, first, second = np.random.default_rng(0).standard_normal((3, *SHAPE))
    state = SolverState(Solver(spec_of("plms"), repeated).table(1), noise)
    state.step(0, first)
    state.step(1, second)
    once = SolverState(one_run("ddim", levels[:2]), noise)
    once.step(0, (first + second) / 2)
    close(state.sample, once.sample, 1e-6)


def test_ddim_with_eta_1_spreads_like_the_noise_level_it_steps_to() -> None:
    levels = [10.0, 3.0, 0.0]
    table = one_run("ddim", levels, eta=1.0)
    state = SolverState(table, np.zeros((1, 4, 64, 64)))
    fresh = np.random.default_rng(0).standard_normal(state.sample.shape)
    state.step(0, np.zeros_like(fresh), fresh)
    alpha = 1 / np.hypot(1, np.array(levels))
    variance = (1 - alpha[1] ** 2) / (1 - alpha[0] ** 2) * (1 - alpha[0] ** 2 / alpha[1] ** 2)
    assert state.sample.std() == pytest.approx(np.sqrt(variance), rel=0.02)


def test_pure_noise_is_a_level_like_any_other_for_v_prediction() -> None:
    """Zero terminal SNR: sigma is infinite, alpha is 0."""
    x0, noise = np.random.default_rng(0).standard_normal((2, *SHAPE))
    state = SolverState(one_run("ddim", [np.inf, 1.0, 0.0], "v_prediction"), noise)
    state.step(0, -x0)
    close(state.sample, (x0 + noise) / np.sqrt(2), 1e-6)


def test_levels_between_two_entries_are_interpolated_and_entries_are_exact() -> None:
    grid = SolverGrid(
        evaluations=np.array([3]),
        initial_noise_scale=np.ones(1),
        sigmas=np.array([1.0, 3.0, np.inf]),
        timesteps=np.zeros(3),
        source=np.array([0.5, 1.0, 2.0]),
        target=np.array([0.0, 0.25, 1.0]),
    )
    levels = grid.levels(1)
    assert levels.sigma.tolist() == [2.0, 3.0, np.inf]
    assert levels.next_sigma.tolist() == [1.0, 1.5, 3.0]


@pytest.mark.parametrize("steps", [0, -1, 3, 1.0, "2", True, None])
def test_step_counts_outside_the_range_are_refused_with_what_was_received_and_expected(steps: object) -> None:
    solver = Solver(spec_of("ddim", max_steps=2), grid_of([5.0, 0.0], [5.0, 1.0, 0.0]))
    with pytest.raises(SolverError, match=r"steps is .*; solver ddim expects a whole number from 1 to 2") as caught:
        solver.table(steps)  # type: ignore[arg-type]
    assert repr(steps) in str(caught.value)
    assert isinstance(caught.value, RequestError)


def test_tables_are_shared_and_cannot_be_written_to() -> None:
    solver = Solver(spec_of("unipc", max_steps=2), grid_of([5.0, 0.0], [5.0, 1.0, 0.0]))
    table = solver.table(2)
    assert solver.table(2) is table
    for array in (table.timesteps, *vars(table.rows).values()):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_the_start_is_the_noise_at_the_scale_of_its_run() -> None:
    solver = Solver(spec_of("euler"), grid_of([14.6, 0.0], scale=14.6))
    noise = np.ones(SHAPE, np.float32)
    state = SolverState(solver.table(1), noise)
    assert np.array_equal(state.sample, noise * np.float32(14.6))
    close(state.model_input(0), state.sample / np.hypot(1, 14.6), 1e-6)


@pytest.mark.parametrize("rule", OPTIONS)
def test_arrays_that_were_given_or_handed_out_are_never_written_to(rule: str) -> None:
    levels = [9.0, 4.0, 2.0, 1.0, 0.5, 0.0]
    table = one_run(rule, levels)
    arrays = [np.random.default_rng(k).standard_normal(SHAPE).astype(np.float32) for k in range(11)]
    before = [array.copy() for array in arrays]
    state = SolverState(table, arrays[10])
    seen = []
    for k in range(5):
        handed = (state.sample, state.model_input(k), state.table.denoised(k, state.sample, arrays[k]))
        seen.append((handed, [array.copy() for array in handed]))
        state.step(k, arrays[k], arrays[5 + k])
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
    assert all(np.array_equal(a, b) for handed, kept in seen for a, b in zip(handed, kept, strict=True))


@pytest.mark.parametrize("rule", OPTIONS)
def test_half_precision_outputs_are_stepped_in_float32(rule: str) -> None:
    table = one_run(rule, [9.0, 4.0, 0.0])
    noise, output = np.random.default_rng(0).standard_normal((2, *SHAPE)).astype(np.float16)
    state, wide = SolverState(table, noise), SolverState(table, noise.astype(np.float32))
    for k in range(2):
        state.step(k, output, noise)
        wide.step(k, output.astype(np.float32), noise.astype(np.float32))
    assert state.sample.dtype == np.float32
    assert np.array_equal(state.sample, wide.sample)


@pytest.mark.parametrize("rule", OPTIONS)
def test_pictures_at_the_same_step_can_share_a_batch(rule: str) -> None:
    table = one_run(rule, [9.0, 4.0, 2.0, 1.0, 0.0])
    noise, *outputs = np.random.default_rng(0).standard_normal((5, *SHAPE)).astype(np.float32)
    together = SolverState(table, noise)
    apart = [SolverState(table, noise[i : i + 1]) for i in range(SHAPE[0])]
    for k, output in enumerate(outputs):
        together.step(k, output, noise)
        for i, state in enumerate(apart):
            state.step(k, output[i : i + 1], noise[i : i + 1])
    assert np.array_equal(together.sample, np.concatenate([state.sample for state in apart]))


def test_a_step_that_needs_noise_says_so() -> None:
    state = SolverState(one_run("euler-ancestral", [9.0, 4.0, 0.0]), np.ones(SHAPE))
    with pytest.raises(ValueError, match="pass noise where `uses_noise` is set"):
        state.step(0, np.ones(SHAPE, np.float32))


def test_a_spec_survives_the_manifest_with_the_types_of_its_options() -> None:
    spec = spec_of("unipc", max_steps=7, share=1.0)
    again = SolverSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert {key: type(value) for key, value in again.options.items()} == {
        key: type(value) for key, value in spec.options.items()
    }


def test_a_spec_is_frozen_and_knows_its_fields() -> None:
    spec = spec_of("ddim")
    with pytest.raises(ValidationError):
        spec.name = "other"
    with pytest.raises(ValidationError):
        SolverSpec.model_validate({**spec.model_dump(), "order": 2})


def test_a_grid_comes_back_as_it_was_saved_and_equal_grids_give_equal_files(tmp_path: Path) -> None:
    grid = grid_of([5.5, 0.0], [5.5, 1.25, 0.0])
    grid.save(tmp_path / "a.npz")
    grid.save(tmp_path / "b.npz")
    again = SolverGrid.load(tmp_path / "a.npz")
    for name, array in vars(grid).items():
        assert np.array_equal(vars(again)[name], array), name
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_damaged_grid_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "solvers" / "ddim.npz"
    path.parent.mkdir()
    with pytest.raises(BundleError, match=r"ddim\.npz is not a solver's grid"):
        Solver.load(spec_of("ddim"), tmp_path)
    grid_of([5.0, 0.0]).save(path)
    assert Solver.load(spec_of("ddim"), tmp_path).table(1).steps == 1
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:200] + b"\xff" * 100 + whole[300:], b""):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="export the bundle again"):
            Solver.load(spec_of("ddim"), tmp_path)


def test_a_grid_with_python_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "grid.npz"
    np.savez(path, evaluations=np.array([{"not": "a number"}], dtype=object))
    with pytest.raises(BundleError, match="not a solver's grid"):
        SolverGrid.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("source", [0.0, 9.0]), ("target", [-1.0, 1.0]), ("timesteps", [1.0]), ("evaluations", [0, 2])],
)
def test_a_grid_that_points_nowhere_is_refused(tmp_path: Path, field: str, value: list[float]) -> None:
    arrays = {
        "evaluations": [2],
        "initial_noise_scale": [1.0],
        "sigmas": [5.0, 1.0, 0.0],
        "timesteps": [9.0, 5.0],
        "source": [0.0, 1.0],
        "target": [1.0, 2.0],
    }
    arrays[field] = value
    grid = SolverGrid(**{name: np.array(array) for name, array in arrays.items()})
    grid.save(tmp_path / "grid.npz")
    with pytest.raises(BundleError, match="not a solver's grid"):
        SolverGrid.load(tmp_path / "grid.npz")


@pytest.mark.parametrize("name", ["../ddim.npz", "/etc/ddim.npz"])
def test_a_grid_outside_the_bundle_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="leaves the bundle"):
        Solver.load(spec_of("ddim").model_copy(update={"grid": name}), tmp_path)


def test_a_solver_that_promises_more_than_its_grid_holds_is_refused() -> None:
    with pytest.raises(BundleError, match=r"promises 2 steps, its grid .* holds 1"):
        Solver(spec_of("ddim", max_steps=2), grid_of([5.0, 0.0]))


def test_a_rule_of_another_version_is_refused() -> None:
    with pytest.raises(BundleError, match="follows rule 'heun'; this parure knows ddim"):
        Solver(spec_of("ddim").model_copy(update={"rule": "heun"}), grid_of([5.0, 0.0]))


def test_solvers_need_neither_torch_nor_diffusers() -> None:
    code = "import parure.solver, sys; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
