"""`parure demo`: everything, once."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from parure.cli.common import make_folder, needs
from parure.tryon import Where


@click.command("demo")
@click.option("--out", default="out/demo", show_default=True, type=click.Path(path_type=Path))
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@click.option("--triplets", default=64, show_default=True, type=click.IntRange(4), help="Held-out triplets to score.")
@click.option(
    "--loop", type=click.Choice(["server", "client"]), default="server", show_default=True, help="Where the loop runs."
)
def command(out: Path, steps: int | None, triplets: int, loop: Where) -> None:
    """Export the demo checkpoint, serve it with Triton, and put ornaments onto real and rendered pictures."""
    with needs("the demo", "cpu,export,serve"):
        from parure_export.demo.showcase import run_demo
    console = Console(stderr=True)
    make_folder(out)
    with console.status("demo") as status:

        def say(text: str) -> None:
            status.update(text)
            console.log(text)

        sheet = run_demo(out, say, steps=steps, triplets=triplets, loop=loop)
    click.echo((out / "result.json").read_text())
    click.echo(f"look at {sheet}")
