"""Proof that export changed nothing: on tensors captured from a real loop, and along the whole loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parure.components import ComponentRunner, Stopwatch
from parure.errors import ExportError
from parure.executor import Executor
from parure.loop import LoopOptions, Noise, Ornament, Person, denoise
from parure.manifest import ComponentParity, Parity, TrajectoryStep
from parure.solver import SolverTable
from parure_export.model import Components
from parure_export.onnx_export import INPUTS, OUTPUTS, Call
from parure_export.reference_loop import LoopInputs, LoopState, decode, reference_loop
from parure_export.samples import one


@dataclass(frozen=True)
class Tolerances:
    """Largest relative error, per component and along the loop."""

    component: float
    loop: float


TOLERANCES = {"fp32": Tolerances(1e-4, 1e-3), "fp16": Tolerances(3e-2, 1e-1)}


@dataclass(frozen=True)
class Capture:
    """A PyTorch loop with everything that went through it."""

    calls: Mapping[str, Sequence[Call]]
    states: Sequence[LoopState]
    ornament_features_cacheable: bool


def capture(components: Components, inputs: LoopInputs, scheduler: Any, steps: int) -> Capture:
    """Run the reference loop and keep every component's tensors.

    The loop asks ReferenceNet for the ornament at every step with the same arguments. Only if every answer is
    the same, bit for bit, whatever the step and the wearing mask, may the features be cached.
    """
    calls: dict[str, list[Call]] = defaultdict(list)

    def observe(name: str, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        calls[name].append(Call(tuple(a.detach().clone() for a in arguments), output.detach().clone()))

    states = list(reference_loop(components, inputs, scheduler, steps, observe=observe))
    picture = decode(components, states[-1].latents)
    observe("vae_decoder", (states[-1].latents,), picture)
    of_ornament = calls["reference_net"][0::2]
    cacheable = all(torch.equal(call.output, of_ornament[0].output) for call in of_ornament)
    return Capture(calls, states, cacheable)


def component_parity(
    name: str, calls: Sequence[Call], run: Executor, tolerance: float, max_batch: int
) -> ComponentParity:
    """The exported graph on captured tensors, at batch 1 and at the batch that was captured.

    Raises `ExportError` beyond `tolerance`.
    """
    worst, samples = 0.0, 0
    for call in calls:
        for batch in {1, min(max_batch, len(call.output))}:
            inputs = {k: v[:batch].numpy() for k, v in zip(INPUTS[name], call.inputs, strict=True)}
            output = run.run(name, inputs)[OUTPUTS[name]]
            worst = max(worst, relative_error(output, call.output[:batch].numpy()))
            samples += batch
    if not worst <= tolerance:
        raise ExportError(
            f"component {name} does not keep its parity: the exported graph differs from PyTorch by {worst:.2e} "
            f"(relative, on {samples} captured samples), the tolerance is {tolerance:.0e}; nothing was written"
        )
    return ComponentParity(component=name, tolerance=tolerance, max_relative_error=worst, samples=samples)


def loop_parity(
    components: tuple[ComponentParity, ...],
    captured: Capture,
    inputs: LoopInputs,
    executor: Executor,
    table: SolverTable,
    tolerance: float,
) -> Parity:
    """The runtime's own loop on the exported graphs against the PyTorch loop: drift at every step, same noise.

    Raises `ExportError` beyond `tolerance`.
    """
    count = len(inputs.noise)
    drifts = [_drift(one(inputs, i), [_state(s, i) for s in captured.states], executor, table) for i in range(count)]
    trajectory = tuple(
        TrajectoryStep(step=k, latents=max(d[k][0] for d in drifts), mask=max(d[k][1] for d in drifts))
        for k in range(len(captured.states))
    )
    worst = max(max(step.latents, step.mask) for step in trajectory)
    if not worst <= tolerance:
        at = max(trajectory, key=lambda step: max(step.latents, step.mask))
        raise ExportError(
            f"the loop does not keep its parity: at step {at.step} latents differ by {at.latents:.2e} and the mask by "
            f"{at.mask:.2e} (relative), the tolerance is {tolerance:.0e}; nothing was written"
        )
    return Parity(components=components, loop_tolerance=tolerance, loop_max_relative_error=worst, trajectory=trajectory)


def relative_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """max|a - b| / max|b|, guarded against a reference of zeros; infinite for numbers that are not finite."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / max(float(np.abs(expected).max()), 1e-3))


def _state(state: LoopState, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
    part = slice(index, index + 1)
    return state.latents[part].numpy(), state.predicted_mask[part].numpy()


def _drift(
    inputs: LoopInputs,
    expected: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    executor: Executor,
    table: SolverTable,
) -> list[tuple[float, float]]:
    """(latents, mask) error after every step of one sample."""
    run = ComponentRunner(executor, Stopwatch())
    tokens = run.image_encoder(inputs.pixels.numpy())
    z_o = run.vae_encoder(inputs.ornament.numpy())
    ornament = Ornament(tokens, run.reference_net(z_o, inputs.ornament_mask.numpy(), tokens))
    person = Person(run.vae_encoder(inputs.crop.numpy()), inputs.box_mask.numpy())
    noise = Noise(inputs.noise.numpy(), None)
    steps = denoise(run, person, ornament, table, noise, LoopOptions())
    return [
        (relative_error(step.latents, latents), relative_error(step.predicted_mask, mask))
        for step, (latents, mask) in zip(steps, expected, strict=True)
    ]
