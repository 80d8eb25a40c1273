"""Trains the demo checkpoint from nothing: `python -m parure_export.demo.train --work out/train`.

Renders triplets, trains the VAE, encodes the triplets once, trains the try-on model, and writes the
checkpoint folder in half precision. Every stage resumes where it was stopped; curves are in
`<work>/vae/curves.jsonl` and `<work>/tryon/curves.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file

from parure_export.checkpoint import PipelineConfig, save_checkpoint, scheduler_of
from parure_export.demo.calibrate import calibrate_mask_head
from parure_export.demo.dataset import SHARD, load_shard, load_shards, render_shards
from parure_export.demo.latents import LatentTriplets, encode, join
from parure_export.demo.train_tryon import train_tryon
from parure_export.demo.train_vae import train_vae
from parure_export.model import VaeEncoder
from parure_export.model.geometry import DEMO, RawModules, new_modules

Report = Callable[[int], None]


@click.command()
@click.option("--work", type=click.Path(path_type=Path), default="out/train", show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default="export/parure_export/demo/checkpoint", show_default=True
)
@click.option("--triplets", default=20_000, show_default=True, help="Rendered triplets.")
@click.option("--vae-steps", default=900, show_default=True)
@click.option("--steps", default=6_000, show_default=True, help="Try-on training steps.")
@click.option("--workers", default=2, show_default=True, help="Processes that render.")
def main(work: Path, out: Path, triplets: int, vae_steps: int, steps: int, workers: int) -> None:
    """Train the demo checkpoint, resuming what WORK already holds."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:

        def stage(name: str, total: int) -> Report:
            task = progress.add_task(name, total=total)
            return lambda done: progress.update(task, completed=done)

        report = stage("render", triplets)
        for done in render_shards(work / "triplets", triplets, DEMO.size, workers):
            report(done)
        modules = new_modules(DEMO)
        _vae(modules, work, triplets, vae_steps, stage)
        data = _latents(modules, work, triplets, stage("encode", triplets))
        scheduler = scheduler_of(DEMO)
        train_tryon(modules, DEMO, DDPMScheduler(**scheduler), data, work / "tryon", steps, stage("try-on", steps))
        stage("calibrate", 1)
        scale, bias = calibrate_mask_head(modules, DEMO)
    click.echo(f"mask logits: scale {scale:.1f}, bias {bias:+.1f}")
    write_checkpoint(modules, out)
    click.echo(f"checkpoint: {out}")


def write_checkpoint(modules: RawModules, out: Path) -> None:
    """Save in half precision: 20 MB instead of 40; the exported fp32 graphs hold the same rounded numbers."""
    for module in (modules.unet, modules.reference_net, modules.mask_head, modules.vae, modules.image_encoder):
        module.to(memory_format=torch.contiguous_format).half()
    save_checkpoint(out, modules, PipelineConfig.model_validate(DEMO.pipeline), scheduler_of(DEMO))


def _vae(modules: RawModules, work: Path, triplets: int, steps: int, stage: Callable[[str, int], Report]) -> None:
    """Train the VAE once; the scaling factor that gives its latents unit variance is measured with it."""
    final = work / "vae" / "final"
    if not final.exists():
        data = load_shards(work / "triplets", triplets)
        train_vae(modules.vae, data, work / "vae", steps, patch=64, report=stage("vae", steps))
        modules.vae.register_to_config(scaling_factor=1.0)
        raw = encode(VaeEncoder(modules.vae).eval(), load_shard(work / "triplets", 0), DEMO)
        modules.vae.register_to_config(scaling_factor=float(1 / raw.target.float().std()))
        modules.vae.save_pretrained(final)
    trained = AutoencoderKL.from_pretrained(final)
    modules.vae.load_state_dict(trained.state_dict())
    modules.vae.register_to_config(scaling_factor=trained.config.scaling_factor)


def _latents(modules: RawModules, work: Path, triplets: int, report: Report) -> LatentTriplets:
    """Every triplet, encoded once: a file a shard, so that more triplets cost only themselves."""
    folder = work / "latents"
    folder.mkdir(exist_ok=True)
    vae = VaeEncoder(modules.vae).eval()
    parts: list[LatentTriplets] = []
    for start in range(0, triplets, SHARD):
        path = folder / f"latents-{start:07d}.safetensors"
        if not path.exists():
            partial = path.with_suffix(".partial")
            save_file(vars(encode(vae, load_shard(work / "triplets", start), DEMO)), partial)
            partial.replace(path)
        parts.append(LatentTriplets(**load_file(path)))
        report(sum(map(len, parts)))
    return join(parts)


if __name__ == "__main__":
    main()
