"""`parure batch`: a table of pictures to make, on any number of servers."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from parure.batch.batch import Plan, Summary, run_batch
from parure.batch.dry_run import dry_run
from parure.batch.order import WINDOW


@click.command("batch")
@click.argument("jobs", metavar="JOBS")
@click.option(
    "--endpoint", "endpoints", multiple=True, metavar="URL", help="A server; dns+grpc://NAME is all of a name."
)
@click.option("--endpoints-file", type=click.Path(path_type=Path), help="A URL per line; may grow meanwhile.")
@click.option("--out", required=True, metavar="DIR|URL", help="Where pictures, masks and results go.")
@click.option("--dry-run", "only_check", is_flag=True, help="Only say which rows would be rejected.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True)
@click.option("--ray-address", help="An existing Ray cluster [default: RAY_ADDRESS, or a new one on this host].")
@click.option("--deadline", type=float, default=300.0, show_default=True, help="Seconds for one picture.")
@click.option("--attempts", type=click.IntRange(1), default=4, show_default=True, help="At one job.")
@click.option("--max-failures", type=click.IntRange(0), help="Stop once more jobs than this have failed.")
@click.option("--patience", type=float, default=300.0, show_default=True, help="Seconds without any endpoint.")
@click.option("--grace", type=float, default=60.0, show_default=True, help="Seconds for what is in flight at Ctrl-C.")
@click.option("--per-endpoint", type=click.IntRange(1), help="Pictures on their way to one [default: what it takes].")
@click.option("--window", type=click.IntRange(1), default=WINDOW, show_default=True, help="Rows to look ahead.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON, and nothing meanwhile.")
def command(
    jobs: str, endpoints: tuple[str, ...], endpoints_file: Path | None, out: str, only_check: bool,
    engine: Literal["local", "ray"], ray_address: str | None, deadline: float, attempts: int,
    max_failures: int | None, patience: float, grace: float, per_endpoint: int | None, window: int, as_json: bool,
) -> None:  # fmt: skip
    """Make every picture in JOBS, a Parquet, JSONL or CSV file with the columns photo, ornament, box, and optionally
    ornament_mask, seed, steps, solver, guidance, mode, id.

    The same command again goes on where the last one ended. Exit code 0 only if every row is done.
    """
    plan = Plan(
        jobs, out, endpoints, endpoints_file, engine, ray_address, deadline, attempts, max_failures, patience, grace,
        per_endpoint, window, quiet=as_json,
    )  # fmt: skip
    summary = dry_run(plan) if only_check else run_batch(plan)
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
    else:
        _show(summary, Console(), dry=only_check)
    sys.exit(summary.exit_code)


def _show(summary: Summary, console: Console, *, dry: bool) -> None:
    if summary.reasons:
        table = Table(
            "row", "", "reason", title=f"The first {len(summary.reasons)} that are not done", title_justify="left"
        )
        for row, status, reason in summary.reasons:
            table.add_row(str(row), status, escape(reason))
        console.print(table)
    if dry:
        console.print(
            f"{summary.total:,} rows: {summary.done:,} can be made, {summary.rejected:,} cannot, {summary.failed:,} unknown"
        )
        return
    counts = ", ".join(f"{count:,} {name}" for name, count in summary.how.items() if count)
    console.print(
        f"{summary.done:,} of {summary.total:,} done, {summary.rejected:,} rejected, {summary.failed:,} failed ({counts})"
    )
    for url, done in summary.endpoints.items():
        console.print(f"  {escape(url)}  {done:,}", highlight=False)
    console.print(
        f"{summary.seconds:.1f} s, {summary.retried} tried again; see {escape(summary.where)}/results.parquet and index.html"
    )
    if summary.stopped:
        console.print(f"[bold]{escape(summary.stopped)}[/]; run the same command again to go on", highlight=False)
