"""`parure export`: checkpoint -> bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from parure.cli.common import needs
from parure.manifest import Precision


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="BUNDLE")
@click.option("--precision", type=click.Choice([p.value for p in Precision]), default="fp32", show_default=True)
@click.option("--max-batch", type=int, default=8, show_default=True, help="Largest batch that graphs accept.")
@click.option("--solver", "solvers", multiple=True, help="Solver to include; repeatable [default: all that fit].")
@click.option(
    "--features",
    type=click.Choice(["raw", "projected"]),
    default="raw",
    show_default=True,
    help="Projected: ReferenceNet gives keys and values; less work a step, twice the bytes.",
)
@click.option("--deep-reuse", is_flag=True, help="Add what fast modes need to reuse deep features of the U-Net.")
@click.option("--entry-point", metavar="MODULE:FUNCTION", help="Returns wrapped modules of your own classes.")
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
def command(
    checkpoint: Path,
    out: Path,
    precision: str,
    max_batch: int,
    solvers: tuple[str, ...],
    features: Literal["raw", "projected"],
    deep_reuse: bool,
    entry_point: str | None,
    force: bool,
) -> None:
    """Export CHECKPOINT to the folder BUNDLE: ONNX graphs, solvers, manifest, proof of parity.

    Fails, and writes nothing, where the exported graphs or the whole loop depart from PyTorch.
    """
    with needs("export", "cpu,export"):
        from parure_export.export import export_bundle
    console = Console(stderr=True)
    with console.status("export") as status:

        def say(text: str) -> None:
            status.update(text)
            console.log(text)

        manifest = export_bundle(
            checkpoint,
            out,
            precision=Precision(precision),
            max_batch=max_batch,
            solvers=solvers,
            features=features,
            deep_reuse=deep_reuse,
            entry_point=entry_point,
            force=force,
            progress=say,
        )
    click.echo(
        f"{out}: {len(manifest.components)} components, {len(manifest.solvers)} solvers; the loop differs from "
        f"PyTorch by {manifest.parity.loop_max_relative_error:.1e} (tolerance {manifest.parity.loop_tolerance:.0e})"
    )
