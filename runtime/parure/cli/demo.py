"""`parure demo`: everything, once."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from parure.errors import InputError


@click.command("demo")
@click.option("--out", default="out/demo", show_default=True, type=click.Path(path_type=Path))
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@click.option("--triplets", default=64, show_default=True, type=click.IntRange(4), help="Held-out triplets to score.")
def command(out: Path, steps: int | None, triplets: int) -> None:
    """Export the demo checkpoint, serve it with Triton, and put ornaments onto real and rendered pictures."""
    try:
        from parure_export.demo.showcase import run_demo
    except ImportError as error:
        raise InputError(
            f"the demo needs {error.name}, which is not installed; run `pip install 'parure[cpu,export,demo,serve]'`"
        ) from error
    console = Console(stderr=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror}; choose another --out") from error
    with console.status("demo") as status:

        def say(text: str) -> None:
            status.update(text)
            console.log(text)

        sheet = run_demo(out, say, steps=steps, triplets=triplets)
    click.echo((out / "result.json").read_text())
    click.echo(f"look at {sheet}")
