"""The schedule of every mode, and what the loop makes of it on components that only count."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parure.components import ComponentRunner, Stopwatch
from parure.errors import RequestError
from parure.executor import Array, Arrays, FloatArray
from parure.loop import LoopOptions, Noise, Ornament, Person, Step, denoise, ramp
from parure.manifest import Component, Manifest, TensorSpec
from parure.modes import EXACT, PRESETS, Mode
from parure.solver import Solver, SolverSpec, SolverState, SolverTable
from parure.solvers.grid import SolverGrid

STEPS, SIDE, LENGTH = 12, 4, 6


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


LATENTS, MASK, TOKENS = spec("latents", 4, SIDE, SIDE), spec("mask", 1, SIDE, SIDE), spec("tokens", 2, 3)
UNET = (
    LATENTS, spec("masked_latents", 4, SIDE, SIDE), MASK, spec("timestep"), TOKENS,
    spec("ornament_features", LENGTH), spec("model_features", LENGTH),
)  # fmt: skip
NOISE, DEEP = spec("noise", 4, SIDE, SIDE), spec("deep", 2)
TENSORS = {
    "reference_net": ((LATENTS, MASK, TOKENS), (spec("features", LENGTH),)),
    "mask_head": (
        (spec("model_features", LENGTH), spec("ornament_features", LENGTH), MASK),
        (spec("predicted_mask", 1, SIDE, SIDE),),
    ),
    "unet": (UNET, (NOISE, DEEP)),
    "unet_shallow": ((*UNET, DEEP), (NOISE,)),
}
COMPONENTS = tuple(
    Component(name=name, graph=f"{name}.onnx", inputs=inputs, outputs=outputs, parameters=0, flops=0)
    for name, (inputs, outputs) in TENSORS.items()
)


class Counting:
    """Smooth functions in the place of components; `calls` has the name of each, and of the U-Net its timestep."""

    name = identity = "counting"

    def __init__(self) -> None:
        self.manifest = Manifest.model_construct(components=COMPONENTS)
        self.calls: list[str] = []
        self.outputs: list[Collection[str] | None] = []

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        self.calls.append(component)
        self.outputs.append(wanted)
        if component == "reference_net":
            return {"features": np.tanh(inputs["mask"].reshape(1, -1)[:, :LENGTH] + inputs["tokens"].mean())}
        if component == "mask_head":
            level = inputs["model_features"].mean() * 0.3 + 0.2
            return {"predicted_mask": (inputs["mask"] * level).astype(np.float32)}
        deep = inputs.get("deep", inputs["timestep"][:, None] / 1000 + inputs["model_features"][:, :2])
        noise = np.tanh(inputs["latents"] + deep.mean() + inputs["ornament_features"].mean() + inputs["mask"])
        outputs: dict[str, Any] = {"noise": noise.astype(np.float32), "deep": deep.astype(np.float32)}
        return {name: outputs[name] for name in wanted or outputs}

    def close(self) -> None:
        pass


def table(steps: int = STEPS) -> SolverTable:
    places = np.concatenate([np.arange(n, dtype=float)[::-1] for n in range(1, steps + 1)])
    grid = SolverGrid(
        evaluations=np.arange(1, steps + 1),
        initial_noise_scale=np.ones(steps),
        sigmas=np.linspace(0.05, 10, 1000),
        timesteps=places * 10,
        source=places * 10 + 9,
        target=places * 10,
    )
    solver = SolverSpec(
        name="ddim", rule="ddim", prediction_type="epsilon", grid="g", max_steps=steps, options={"eta": 0.0}
    )
    return Solver(solver, grid).table(steps)


PERSON = Person(np.ones((1, 4, SIDE, SIDE), np.float32), np.ones((1, 1, SIDE, SIDE), np.float32))
ORNAMENT = Ornament(np.full((1, 2, 3), 0.3, np.float32), np.full((1, LENGTH), 0.5, np.float32))


def run(mode: Mode, guidance: float = 2.0, executor: Counting | None = None) -> tuple[list[Step], Counting, Stopwatch]:
    counting, watch = executor or Counting(), Stopwatch()
    noise = Noise(np.random.default_rng(0).standard_normal((1, 4, SIDE, SIDE)).astype(np.float32), None)
    options = LoopOptions(guidance, mode=mode)
    steps = list(denoise(ComponentRunner(counting, watch), PERSON, ORNAMENT, table(), noise, options))
    return steps, counting, watch


def exact_by_the_book(guidance: float) -> FloatArray:
    """Section 2 of the design, word for word."""
    call = ComponentRunner(Counting(), Stopwatch())
    noise = np.random.default_rng(0).standard_normal((1, 4, SIDE, SIDE)).astype(np.float32)
    solver, M_box = SolverState(table(), noise), PERSON.box_mask
    M_pred, alpha, absent = M_box, ramp(STEPS), ORNAMENT.absent()
    for k, timestep in enumerate(table().timesteps):
        M = alpha[k] * M_pred + (1 - alpha[k]) * M_box
        f_m = call.reference_net(PERSON.masked_latents, M, ORNAMENT.tokens)
        M_pred = call.mask_head(f_m, ORNAMENT.features, M)
        z, t = solver.model_input(k), np.full(1, timestep, np.float32)
        eps = call.unet(z, PERSON.masked_latents, M, t, ORNAMENT.tokens, ORNAMENT.features, f_m)
        if guidance != 1.0:
            eps_u = call.unet(z, PERSON.masked_latents, M, t, absent.tokens, absent.features, f_m)
            eps = eps_u + np.float32(guidance) * (eps - eps_u)
        solver.step(k, eps)
    return solver.sample


@pytest.mark.parametrize("guidance", [1.0, 2.3])
def test_exact_is_the_loop_of_the_paper_bit_for_bit_and_spares_nothing(guidance: float) -> None:
    steps, counting, watch = run(EXACT, guidance)
    assert np.array_equal(steps[-1].latents, exact_by_the_book(guidance))
    assert not watch.spared and "unet_shallow" not in counting.calls
    assert all("deep" not in (wanted or ()) for wanted in counting.outputs)


@pytest.mark.parametrize("mode", [Mode(settled=0.0), Mode(mask=1, guidance=1.0, hold=1, deep=1)])
def test_settings_that_skip_nothing_are_exact(mode: Mode) -> None:
    assert mode == EXACT and str(mode) == "exact"
    assert np.array_equal(run(mode)[0][-1].latents, run(EXACT)[0][-1].latents)


@pytest.mark.parametrize("n", [2, 3, 5, 100])
def test_the_mask_is_refreshed_every_n_steps_and_at_the_last(n: int) -> None:
    _, counting, watch = run(Mode(mask=n))
    due = len({*range(0, STEPS, n), STEPS - 1})
    assert counting.calls.count("reference_net") == counting.calls.count("mask_head") == due
    assert watch.spared["reference_net"] == watch.spared["mask_head"] == STEPS - due


def test_the_mask_is_refreshed_no_more_once_it_has_settled_but_at_the_last_step() -> None:
    steps, counting, watch = run(Mode(settled=1.0))
    done = counting.calls.count("reference_net")
    assert done == 3 and watch.spared["reference_net"] == STEPS - 3  # the second shows that it has settled
    assert not np.array_equal(steps[-1].predicted_mask, steps[-2].predicted_mask)
    assert 3 < run(Mode(settled=1e-3))[1].calls.count("reference_net") <= STEPS


@pytest.mark.parametrize(("share", "guided"), [(0.0, 0), (0.5, 6), (0.51, 7), (1.0, 12)])
def test_guidance_covers_its_share_of_the_steps_from_the_first_on(share: float, guided: int) -> None:
    _, counting, watch = run(Mode(guidance=share))
    assert counting.calls.count("unet") == STEPS + guided and watch.spared["unet"] == STEPS - guided
    assert run(Mode(guidance=share), guidance=1.0)[2].spared["unet"] == 0


def test_a_held_difference_guides_without_an_unconditional_pass() -> None:
    _, counting, watch = run(Mode(hold=3))
    assert counting.calls.count("unet") == STEPS + 4 and watch.spared["unet"] == STEPS - 4
    plain, held, none = (run(mode)[0][-1].latents for mode in (EXACT, Mode(hold=3), Mode(guidance=0.0)))
    assert 0 < np.abs(held - plain).max() < np.abs(none - plain).max()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_each_pass_reuses_its_own_deep_features_and_makes_them_every_n_steps(guidance: float) -> None:
    _, counting, watch = run(Mode(deep=4), guidance)
    passes = 1 if guidance == 1.0 else 2
    assert counting.calls.count("unet") == 3 * passes and counting.calls.count("unet_shallow") == 9 * passes
    assert watch.spared["unet"] == 9 * passes


def test_a_pass_without_deep_features_makes_them_whenever_it_runs() -> None:
    _, counting, _ = run(Mode(hold=5, deep=2))  # unconditional at 0, 5, 10: of these 5 has features of step 0
    assert counting.calls.count("unet_shallow") == 6 + 1


def test_pictures_of_one_executor_do_not_share_what_they_keep() -> None:
    shared = Counting()
    first, again = (run(PRESETS["fast"], executor=shared)[0][-1].latents for _ in range(2))
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    "text",
    [
        *PRESETS,
        "mask=4",
        "fast,deep=2",
        "settled=0.02,guidance=0.5",
        "balanced,mask=2",
        "mask=1000000,settled=0.012345678",
    ],
)
def test_a_mode_is_read_back_from_its_own_words(text: str) -> None:
    mode = Mode.parse(text)
    assert Mode.parse(str(mode)) == mode
    assert text not in PRESETS or str(mode) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fastest", "mode is 'fastest'; expected one of exact, "),
        ("", "mode is ''"),
        ("fast,depth=3", "'depth=3' is no setting; expected mask=N"),
        ("deep=two", "deep is 'two'; expected a whole number from 1 on"),
        ("deep=1.5", "deep is '1.5'"),
        ("fast,mask", "mask is ''; expected a whole number"),
    ],
)
def test_words_that_name_no_mode_are_refused(text: str, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        Mode.parse(text)
    assert words in str(caught.value)


def test_the_page_on_modes_tells_of_every_preset_and_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "fast-modes.md").read_text()
    for name, preset in PRESETS.items():
        words = ",".join(
            f"{f.name}={getattr(preset, f.name)}" for f in fields(Mode) if getattr(preset, f.name) != f.default
        )
        assert f"| `{name}` | {f'`{words}`' if words else 'none'}" in page
    for setting in fields(Mode):
        assert f"| `{setting.name}=" in page
