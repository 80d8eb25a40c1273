"""`parure checkpoint`: make and inspect checkpoint folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from parure.cli.common import needs
from parure.errors import InputError

if TYPE_CHECKING:
    from parure_export.checkpoint_report import CheckpointReport

EXTRAS = "cpu,export"


@click.group("checkpoint")
def command() -> None:
    """Make and inspect checkpoint folders."""


@command.command("new")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--geometry", type=click.Choice(["sd15", "demo"]), required=True, help="Sizes of the modules.")
@click.option("--seed", default=0, show_default=True)
@click.option("--dtype", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help="Of the weights.")
def new(out: Path, geometry: str, seed: int, dtype: str) -> None:
    """Write a checkpoint with random weights to OUT: for latency work without trained ones."""
    with needs("making a checkpoint", EXTRAS):
        from parure_export.checkpoint import new_checkpoint
        from parure_export.model.geometry import GEOMETRIES
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not empty; choose another folder")
    try:
        new_checkpoint(out, GEOMETRIES[geometry], seed, half=dtype == "fp16")
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    click.echo(f"checkpoint: {out}")


@command.command("show")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(path: Path, as_json: bool) -> None:
    """Print what the checkpoint at PATH contains, or say precisely what is wrong with it."""
    with needs("reading a checkpoint", EXTRAS):
        from parure_export.checkpoint_report import report
    content = report(path)
    if as_json:
        click.echo(content.model_dump_json(indent=2))
    else:
        _print(content)


def _print(content: CheckpointReport) -> None:
    console = Console()
    console.print(
        f"crop {content.crop_size} px, latents {content.latent_channels} x {content.latent_size}², "
        f"{content.prediction_type}, guidance {content.guidance}"
    )
    table = Table("component", "parameters", "GFLOP", "inputs, one sample")
    for component in content.components:
        inputs = ", ".join(f"{name} {list(shape)}" for name, shape in component.inputs.items())
        table.add_row(component.name, f"{component.parameters / 1e6:.2f} M", f"{component.flops / 1e9:.2f}", inputs)
    console.print(table)
    layers = Table("feature layer", "tokens", "channels", "offset", "mask head")
    for layer in content.features.layers:
        used = "yes" if layer.layer in content.features.mask_head_layers else ""
        layers.add_row(layer.layer, str(layer.tokens), str(layer.channels), str(layer.offset), used)
    console.print(layers)
    console.print(f"features: {content.features.length} elements, {content.feature_bytes / 1e6:.2f} MB in fp16")
    console.print(f"sha256 {content.sha256}")
