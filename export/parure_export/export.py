"""`export_bundle`: checkpoint -> wrapped modules -> ONNX -> proven equal -> a bundle, all or nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from parure.bundle import Bundle, sha256_of
from parure.errors import BundleError, CheckpointError, ExportError, InputError
from parure.manifest import (
    MANIFEST_NAME,
    Geometry,
    ImageEncoderSpec,
    LoopSpec,
    Manifest,
    Parity,
    Precision,
)
from parure.solver import Solver, SolverSpec
from parure_export.checkpoint import PipelineConfig, load_checkpoint
from parure_export.evidence import EVIDENCE, save_evidence
from parure_export.graphs import EMULATED, Graph, write_graphs
from parure_export.model import Components
from parure_export.model.features import Form
from parure_export.onnx_export import Call
from parure_export.parity import Capture, capture, check_same_loop, measure_parity
from parure_export.reference_loop import reference_loop
from parure_export.samples import SampleShape, sample_inputs
from parure_export.solvers import SOLVERS, TOLERANCE, build_scheduler, compile_solver, verify_solver
from parure_export.staging import staged

SAMPLES = 2
PARITY_STEPS = 4
LARGE = 300_000_000  # parameters of a U-Net whose single pass takes seconds on a CPU
PARITY_SOLVER = "ddim"  # deterministic, and defined for every scheduler; compared whether the bundle has it or not
Say = Callable[[str], None]


@dataclass(frozen=True)
class Exportable:
    """What export needs of a model: a checkpoint folder gives it, or a user's entry point returns it.

    `components` are wrapped modules with the bundle's tensors, float32, in evaluation mode; `latent_channels`
    and `latent_size` are those of the latents, `pixels` the side that the image encoder wants. `raw` is the same
    model on raw features, where `components` work on projected ones: they must compute the same.
    """

    components: Components
    pipeline: PipelineConfig
    scheduler_config: dict[str, Any]
    latent_channels: int
    latent_size: int
    pixels: int
    sha256: str
    raw: Components | None = None

    @property
    def shape(self) -> SampleShape:
        p = self.pipeline
        return SampleShape(p.crop_size, self.latent_size, self.latent_channels, self.pixels, p.pixel_mean, p.pixel_std)


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    precision: Precision = Precision.FP32,
    max_batch: int = 8,
    solvers: Sequence[str] = (),
    features: Form = "raw",
    deep_reuse: bool = False,
    entry_point: str | None = None,
    force: bool = False,
    progress: Say = lambda text: None,
) -> Manifest:
    """Export `checkpoint` to the bundle folder `out`; `solvers` empty means all that its scheduler allows.

    `deep_reuse` adds the component `unet_shallow`, and to the U-Net the output that it takes: for fast modes.

    Raises `CheckpointError` for a checkpoint that cannot be read, `InputError` for wrong arguments, and
    `ExportError` where parity is not kept. Nothing is left at `out` unless everything held.
    """
    _check_arguments(out, max_batch, solvers, force)
    if entry_point and features != "raw":
        raise InputError(f"entry point {entry_point} decides itself on the form of its features; drop --features")
    progress("reading the checkpoint")
    if entry_point:
        model = _from_entry_point(entry_point, checkpoint)
        _check_deep_reuse(model, entry_point, deep_reuse)
    else:
        model = from_checkpoint(checkpoint, features, deep_reuse)
    with staged(out) as stage:
        for folder in ("onnx", "solvers", "reports"):
            (stage / folder).mkdir()
        specs = _write_solvers(model, stage, solvers, progress)
        progress("running the PyTorch loop")
        effort = _effort(model)
        inputs = sample_inputs(model.shape, effort.samples)
        scheduler = build_scheduler(PARITY_SOLVER, model.scheduler_config)
        captured = capture(model.components, inputs, scheduler, effort.steps)
        if model.raw is not None:
            progress("comparing projected features with raw ones")
            check_same_loop(captured, reference_loop(model.raw, inputs, scheduler, effort.steps))
        table = Solver(*compile_solver(PARITY_SOLVER, model.scheduler_config)).table(effort.steps)
        draft = _draft(model, specs, captured, precision, max_batch)
        modules = dict(model.components.items())
        del model  # so that every module's memory is free once its graph is written
        graphs = write_graphs(modules, captured, stage / "onnx", precision, max_batch, progress)
        manifest = draft.model_copy(update={"components": tuple(graph.component for graph in graphs.values())})
        judged = {name: graph.judged for name, graph in graphs.items()}
        parity = measure_parity(manifest, judged, captured, inputs, table, effort.calls, progress)
        _write_reports(stage, graphs, captured, parity)
        _seal(manifest.model_copy(update={"parity": parity}), stage)
    progress(f"bundle: {out}")
    return Bundle.open(out).manifest


def from_checkpoint(folder: Path, features: Form = "raw", deep_reuse: bool = False) -> Exportable:
    """A checkpoint folder, ready for export."""
    loaded = load_checkpoint(folder)
    return Exportable(
        components=loaded.components(features, deep_reuse),
        raw=loaded.components() if features == "projected" else None,
        pipeline=loaded.pipeline,
        scheduler_config=loaded.scheduler_config,
        latent_channels=int(loaded.modules.vae.config.latent_channels),
        latent_size=int(loaded.modules.unet.config.sample_size),
        pixels=int(loaded.modules.image_encoder.config.image_size),
        sha256=loaded.sha256,
    )


def _from_entry_point(name: str, checkpoint: Path) -> Exportable:
    """Call `module:function` with the checkpoint's path; it must return an `Exportable`."""
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise CheckpointError(f"entry point {name!r} is not of the form module:function; name it so")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"entry point {name!r} cannot be imported: {error}; is it on PYTHONPATH?") from error
    returned = function(checkpoint)
    if not isinstance(returned, Exportable):
        raise CheckpointError(
            f"entry point {name!r} returned {type(returned).__name__}; expected parure_export.export.Exportable"
        )
    return returned


def _check_deep_reuse(model: Exportable, entry_point: str, wanted: bool) -> None:
    if wanted and model.components.unet_shallow is None:
        raise InputError(
            f"entry point {entry_point} returned no unet_shallow; let it return one, and a U-Net that gives deep features "
            "as its second output, or drop --deep-reuse"
        )


def _check_arguments(out: Path, max_batch: int, solvers: Sequence[str], force: bool) -> None:
    if max_batch < 1:
        raise InputError(f"max batch is {max_batch}; expected a whole number from 1 on")
    if unknown := [name for name in solvers if name not in SOLVERS]:
        raise InputError(f"solver {unknown[0]!r} is not known; expected one of {', '.join(SOLVERS)}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST_NAME).is_file():
        raise InputError(f"{out} exists and is not a bundle; choose another --out")
    if not force:
        raise InputError(f"{out} holds a bundle already; choose another --out, or replace it with --force")


@dataclass(frozen=True)
class Effort:
    """What parity is measured on: a loop of `samples` and `steps`, and `calls` of every component alone."""

    samples: int
    steps: int
    calls: int


def _effort(model: Exportable) -> Effort:
    """Less where one pass takes seconds; the loop runs through every call in any case."""
    parameters = sum(p.numel() for p in model.components.unet.parameters())
    return Effort(1, 2, 1) if parameters > LARGE else Effort(SAMPLES, PARITY_STEPS, 100)


def _draft(
    model: Exportable, specs: tuple[SolverSpec, ...], captured: Capture, precision: Precision, max_batch: int
) -> Manifest:
    """The manifest before there are graphs, parity and files."""
    return Manifest(
        pipeline="ornament_tryon",
        precision=precision,
        max_batch=max_batch,
        components=(),
        features=model.components.layout,
        geometry=_geometry(model, captured),
        image_encoder=ImageEncoderSpec(size=model.pixels, mean=model.pipeline.pixel_mean, std=model.pipeline.pixel_std),
        loop=LoopSpec(
            default_steps=model.pipeline.default_steps,
            default_solver=_default_solver(model, specs),
            default_guidance=model.pipeline.default_guidance,
            guidance=model.pipeline.guidance,
            ornament_features_cacheable=captured.ornament_features_cacheable,
        ),
        solvers=specs,
        parity=Parity(components=()),
        checkpoint_sha256=model.sha256,
        tools={name: version(name) for name in ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime")},
        files={},
    )


def _write_solvers(model: Exportable, stage: Path, names: Sequence[str], say: Say) -> tuple[SolverSpec, ...]:
    """Compile, compare with diffusers, write. Of the default set, what the scheduler cannot do is left out."""
    specs = []
    for name in names or SOLVERS:
        say(f"solver {name}")
        try:
            spec, grid = compile_solver(name, model.scheduler_config)
            error = verify_solver(spec, grid, build_scheduler(name, model.scheduler_config))
        except ValueError as problem:
            if names:
                raise
            say(f"solver {name} is left out: {problem}")
            continue
        if error > TOLERANCE:
            raise ExportError(f"solver {name} differs from diffusers by {error:.1e}, the tolerance is {TOLERANCE:.0e}")
        grid.save(stage / spec.grid)
        specs.append(spec)
    if not specs:
        raise ExportError("no solver fits the checkpoint's scheduler; see scheduler/scheduler_config.json")
    return tuple(specs)


def _default_solver(model: Exportable, specs: Sequence[SolverSpec]) -> str:
    names = [spec.name for spec in specs]
    return model.pipeline.default_solver if model.pipeline.default_solver in names else names[0]


def _write_reports(stage: Path, graphs: Mapping[str, Graph], captured: Capture, parity: Parity) -> None:
    save_evidence(captured, stage / EVIDENCE)
    _write_json(stage / "reports" / "parity.json", parity.model_dump(mode="json"))
    _write_json(stage / "reports" / "graphs.json", {name: graph.report.model_dump() for name, graph in graphs.items()})
    kept = {name: [asdict(node) for node in graph.kept] for name, graph in graphs.items()}
    if any(kept.values()):
        _write_json(stage / "reports" / "precision.json", kept)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _seal(manifest: Manifest, stage: Path) -> None:
    """Hash every file and write the manifest last. What parity alone needed is not kept."""
    for spent in (stage / "onnx").glob(f"{EMULATED}*"):
        spent.unlink()
    files = {p.relative_to(stage).as_posix(): sha256_of(p) for p in sorted(stage.rglob("*")) if p.is_file()}
    sealed = manifest.model_copy(update={"files": files})
    _write_json(stage / MANIFEST_NAME, sealed.model_dump(mode="json"))


def _geometry(model: Exportable, captured: Capture) -> Geometry:
    return Geometry(
        size=model.pipeline.crop_size,
        latent_size=model.latent_size,
        latent_channels=model.latent_channels,
        enlarge=model.pipeline.crop_enlarge,
        compose=model.pipeline.compose,
        preview=_fit_preview(captured.calls["vae_encoder"], model.latent_size),
        feather=model.pipeline.feather,
    )


def _fit_preview(encoded: Sequence[Call], latent_size: int) -> tuple[tuple[float, float, float], ...]:
    """The affine map from latents to colours in -1..1 that fits the encoded pictures best: [channels + 1, 3]."""
    images = torch.cat([call.inputs[0] for call in encoded])
    latents = torch.cat([call.output for call in encoded]).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    colours = F.adaptive_avg_pool2d(images, latent_size).permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    design = np.concatenate([latents, np.ones((len(latents), 1))], axis=1)
    fitted = np.linalg.lstsq(design, colours, rcond=None)[0]
    return tuple((float(r), float(g), float(b)) for r, g, b in fitted)


__all__ = ["BundleError", "Exportable", "export_bundle", "from_checkpoint"]
