"""`parure repo`: bundle -> model repository."""

from __future__ import annotations

from pathlib import Path

import click

from parure.cli.common import needs


@click.command("repo")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="MODEL_REPOSITORY")
@click.option("--instances", default=1, show_default=True, help="Instances of every component.")
@click.option("--threads", default=None, type=int, help="CPU threads of one instance [default: all cores].")
def command(bundle: Path, out: Path, instances: int, threads: int | None) -> None:
    """Write a Triton model repository for BUNDLE: one model per component, and the manifest."""
    with needs("writing a repository", "cpu,serve"):
        from parure_triton.repository import write_repository
    options = {} if threads is None else {"threads": threads}
    write_repository(bundle, out, instances=instances, **options)
    click.echo(f"model repository: {out}\nserve it: parure serve {out}")
