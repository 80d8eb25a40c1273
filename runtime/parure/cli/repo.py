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
@click.option("--at-work", type=int, help="Pictures that the server loop works on at once [default: 16].")
@click.option("--waiting", type=int, help="Pictures that wait for it; the next is refused [default: 64].")
@click.option("--ornament-cache", type=int, metavar="MIB", help="Memory for ornaments that are kept [default: 1024].")
@click.option("--queue-delay", type=int, metavar="MICROSECONDS", help="Wait for calls to join a batch [default: 1000].")
def command(
    bundle: Path, out: Path, instances: int, threads: int | None, at_work: int | None, waiting: int | None,
    ornament_cache: int | None, queue_delay: int | None,
) -> None:  # fmt: skip
    """Write a Triton model repository for BUNDLE: one model per component, the server loop, and the manifest."""
    with needs("writing a repository", "cpu,serve"):
        from parure_triton.repository import write_repository
        from parure_triton.tryon_models import LoopOptions
    cache_bytes = None if ornament_cache is None else ornament_cache << 20
    given = {"at_work": at_work, "waiting": waiting, "cache_bytes": cache_bytes, "queue_delay": queue_delay}
    loop = LoopOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    write_repository(bundle, out, instances=instances, threads=threads, loop=loop)
    click.echo(f"model repository: {out}\nserve it: parure serve {out}")
