"""Proof that export changed nothing: on tensors captured from a real loop, and along the whole loop."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from parure.components import ComponentRunner, Stopwatch
from parure.errors import ExportError
from parure.executor import Array, Arrays, Executor, wanted_outputs
from parure.loop import LoopOptions, Noise, Ornament, Person, denoise
from parure.manifest import Component, ComponentParity, Manifest, Parity, Precision, TrajectoryStep
from parure.modes import SHALLOW_UNET
from parure.onnx_executor import open_session
from parure.solver import SolverTable
from parure_export.model import Components
from parure_export.model.storage import in_float32
from parure_export.onnx_export import Call, session_inputs
from parure_export.reference_loop import LoopInputs, LoopState, decode, reference_loop
from parure_export.samples import one


@dataclass(frozen=True)
class Tolerances:
    """Largest relative error per component and along the loop; least PSNR of the picture (dB) and IoU of the mask."""

    component: float
    loop: float
    picture_psnr: float
    mask_iou: float


TOLERANCES = {
    Precision.FP32: Tolerances(1e-4, 1e-3, 60, 0.999),
    Precision.FP16: Tolerances(3e-2, 1e-1, 40, 0.99),
    Precision.BF16: Tolerances(2e-1, 5e-1, 25, 0.95),
}


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

    def observe(name: str, arguments: tuple[Tensor, ...], *outputs: Tensor) -> None:
        calls[name].append(Call(tuple(a.detach() for a in arguments), *(output.detach() for output in outputs)))

    states = list(reference_loop(components, inputs, scheduler, steps, observe=observe))
    picture = decode(components, states[-1].latents)
    observe("vae_decoder", (states[-1].latents,), picture)
    of_ornament = calls["reference_net"][0::2]
    if components.unet_shallow is not None:
        calls[SHALLOW_UNET] = list(_shallow_calls(components.unet_shallow, calls["unet"]))
    cacheable = all(torch.equal(call.output, of_ornament[0].output) for call in of_ornament)
    return Capture(calls, states, cacheable)


@torch.no_grad()
def _shallow_calls(module: nn.Module, whole: Sequence[Call]) -> Iterator[Call]:
    """Calls of the shallow U-Net as fast modes make them: each on the deep features of the call before.

    On those of the same call it has to give what the whole U-Net gave; raises `ExportError` where it does not.
    """
    with in_float32(module):
        for before, call in pairwise([whole[0], *whole]):
            if before.deep is None or call.deep is None:
                raise ExportError("the U-Net gives no deep features beside its output; export without --deep-reuse")
            error = relative_error(module(*call.inputs, call.deep).numpy(), call.output.numpy())
            if not error <= TOLERANCES[Precision.FP32].component:
                raise ExportError(
                    f"the outer blocks of the U-Net differ by {error:.1e} (relative) from the whole of it on its own "
                    "deep features: it is not built as deep reuse expects; export without --deep-reuse"
                )
            yield Call((*call.inputs, before.deep), module(*call.inputs, before.deep))


def check_same_loop(captured: Capture, other: Iterable[LoopState]) -> None:
    """Two forms of one model, step by step in PyTorch. Raises `ExportError` where they are more than rounding apart."""
    for step, (ours, theirs) in enumerate(zip(captured.states, other, strict=True)):
        error = max(
            relative_error(ours.latents.numpy(), theirs.latents.numpy()),
            relative_error(ours.predicted_mask.numpy(), theirs.predicted_mask.numpy()),
        )
        if not error <= TOLERANCES[Precision.FP32].component:
            raise ExportError(
                f"projected features do not compute what raw ones do: at step {step} the loop differs by {error:.1e} "
                "(relative); export raw features (--features raw)"
            )


def measure_parity(
    manifest: Manifest,
    graphs: Mapping[str, Path],
    captured: Capture,
    inputs: LoopInputs,
    table: SolverTable,
    calls: int,
    say: Callable[[str], None],
) -> Parity:
    """The fp32 `graphs` against what PyTorch computed: every component on captured tensors, then the whole loop.

    Of each component's distinct calls the last `calls` are compared alone.

    Raises `ExportError` where a tolerance of the manifest's precision is not kept.
    """
    tolerances = TOLERANCES[manifest.precision]
    executor = GraphExecutor(manifest, graphs, literal=manifest.precision is not Precision.FP32)
    components = []
    for name in graphs:
        say(f"comparing {name}")
        components.append(
            component_parity(
                name, distinct(captured.calls[name])[-calls:], executor, tolerances.component, manifest.max_batch
            )
        )
        executor.close()  # one graph in memory at a time
    say("comparing the whole loop")
    parity = loop_parity(captured, inputs, executor, table)
    executor.close()
    _judge(parity, tolerances)
    return parity.model_copy(update={"components": tuple(components), "loop_tolerance": tolerances.loop})


class GraphExecutor:
    """Runs fp32 graphs from files that no manifest vouches for yet."""

    name = "graphs"
    identity = ""

    def __init__(self, manifest: Manifest, graphs: Mapping[str, Path], *, literal: bool) -> None:
        self.manifest = manifest.model_copy(
            update={"components": tuple(_in_float32(component) for component in manifest.components)}
        )
        self._graphs = graphs
        self._literal = literal
        self._sessions: dict[str, Any] = {}

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        if component not in self._sessions:
            cores = len(os.sched_getaffinity(0))
            self._sessions[component] = open_session(self._graphs[component], cores, literal=self._literal)
        names = [tensor.name for tensor in wanted_outputs(self.manifest.component(component), wanted)]
        return dict(zip(names, self._sessions[component].run(names, dict(inputs)), strict=True))

    def close(self) -> None:
        self._sessions.clear()


def _in_float32(component: Component) -> Component:
    inputs, outputs = (
        tuple(tensor.model_copy(update={"dtype": "float32"}) for tensor in tensors)
        for tensors in (component.inputs, component.outputs)
    )
    return component.model_copy(update={"inputs": inputs, "outputs": outputs})


def distinct(calls: Sequence[Call]) -> list[Call]:
    """`calls` without those that repeat another's arguments: the ornament's features are asked for at every step."""
    kept: list[Call] = []
    for call in calls:
        if not any(all(map(torch.equal, call.inputs, other.inputs)) for other in kept):
            kept.append(call)
    return kept


def component_parity(
    name: str, calls: Sequence[Call], run: Executor, tolerance: float, max_batch: int
) -> ComponentParity:
    """The exported graph on captured tensors, at batch 1 and at the batch that was captured.

    Raises `ExportError` beyond `tolerance`.
    """
    worst, samples = 0.0, 0
    taken = {tensor.name for tensor in run.manifest.component(name).inputs}
    for call in calls:
        for batch in {1, min(max_batch, len(call.output))}:
            inputs = {key: value[:batch] for key, value in session_inputs(name, call, taken).items()}
            outputs = run.run(name, inputs)
            for key, expected in call.outputs(name).items():
                worst = max(worst, relative_error(outputs[key], expected[:batch].numpy()))
            samples += batch
    if not worst <= tolerance:
        raise ExportError(
            f"component {name} does not keep its parity: the exported graph differs from PyTorch by {worst:.2e} "
            f"(relative, on {samples} captured samples), the tolerance is {tolerance:.0e}; nothing was written"
        )
    return ComponentParity(component=name, tolerance=tolerance, max_relative_error=worst, samples=samples)


def loop_parity(captured: Capture, inputs: LoopInputs, executor: Executor, table: SolverTable) -> Parity:
    """The runtime's own loop on the exported graphs against the PyTorch loop: drift at every step, same noise."""
    count = len(inputs.noise)
    drifts = [_drift(one(inputs, i), [_state(s, i) for s in captured.states], executor, table) for i in range(count)]
    trajectory = tuple(
        TrajectoryStep(step=k, latents=max(d[k].latents for d in drifts), mask=max(d[k].mask for d in drifts))
        for k in range(len(captured.states))
    )
    decoder = ComponentRunner(executor, Stopwatch())
    expected = captured.calls["vae_decoder"][0].output.numpy()
    pictures = [psnr(decoder.vae_decoder(d[-1].final), expected[i : i + 1]) for i, d in enumerate(drifts)]
    return Parity(
        components=(),
        loop_max_relative_error=max(max(step.latents, step.mask) for step in trajectory),
        trajectory=trajectory,
        picture_psnr=min(pictures),
        mask_iou=min(d[-1].mask_iou for d in drifts),
    )


def _judge(parity: Parity, tolerances: Tolerances) -> None:
    if not parity.loop_max_relative_error <= tolerances.loop:
        at = max(parity.trajectory, key=lambda step: max(step.latents, step.mask))
        raise ExportError(
            f"the loop does not keep its parity: at step {at.step} latents differ by {at.latents:.2e} and the mask by "
            f"{at.mask:.2e} (relative), the tolerance is {tolerances.loop:.0e}; nothing was written"
        )
    if not (parity.picture_psnr >= tolerances.picture_psnr and parity.mask_iou >= tolerances.mask_iou):
        raise ExportError(
            f"the loop does not keep its parity: the picture has {parity.picture_psnr:.1f} dB and the mask an IoU of "
            f"{parity.mask_iou:.4f} against PyTorch, expected at least {tolerances.picture_psnr:g} dB and "
            f"{tolerances.mask_iou:g}; nothing was written"
        )


def psnr(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of pictures in -1..1, clipped, in dB; 100 where they are equal, 0 where one is not finite."""
    if not np.isfinite(actual).all():
        return 0.0
    difference = (np.clip(actual.astype(np.float64), -1, 1) - np.clip(expected.astype(np.float64), -1, 1)) / 2
    error = float(np.mean(difference**2))
    return min(100.0, -10 * math.log10(error)) if error else 100.0


def relative_error(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """max|a - b| / max|b|, guarded against a reference of zeros; infinite for numbers that are not finite."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    if actual.shape != expected.shape or not np.isfinite(actual).all():
        return float("inf")
    return float(np.abs(actual - expected).max() / max(float(np.abs(expected).max()), 1e-3))


def _state(state: LoopState, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
    part = slice(index, index + 1)
    return state.latents[part].numpy(), state.predicted_mask[part].numpy()


@dataclass(frozen=True)
class _Drift:
    """One sample after one step: relative errors, the soft IoU of the masks, and the latents themselves."""

    latents: float
    mask: float
    mask_iou: float
    final: NDArray[Any]


def _drift(
    inputs: LoopInputs,
    expected: Sequence[tuple[NDArray[Any], NDArray[Any]]],
    executor: Executor,
    table: SolverTable,
) -> list[_Drift]:
    """How far one sample has drifted after every step."""
    run = ComponentRunner(executor, Stopwatch())
    tokens = run.image_encoder(inputs.pixels.numpy())
    z_o = run.vae_encoder(inputs.ornament.numpy())
    ornament = Ornament(tokens, run.reference_net(z_o, inputs.ornament_mask.numpy(), tokens))
    person = Person(run.vae_encoder(inputs.crop.numpy()), inputs.box_mask.numpy())
    noise = Noise(inputs.noise.numpy(), None)
    steps = denoise(run, person, ornament, table, noise, LoopOptions())
    return [
        _Drift(
            latents=relative_error(step.latents, latents),
            mask=relative_error(step.predicted_mask, mask),
            mask_iou=float(np.minimum(step.predicted_mask, mask).sum() / np.maximum(step.predicted_mask, mask).sum()),
            final=step.latents,
        )
        for step, (latents, mask) in zip(steps, expected, strict=True)
    ]
