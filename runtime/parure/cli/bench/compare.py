"""`parure bench compare`: for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from parure.cli.bench.options import share, wide_console
from parure.cli.common import needs

if TYPE_CHECKING:
    from parure_bench.compare import Comparison

COLOURS = {"slower": "red", "faster": "green"}


@click.command("compare")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--fail-above",
    default="5%",
    show_default=True,
    type=share,
    metavar="SHARE",
    help="Smaller changes are let pass, however sure.",
)
def command(old: Path, new: Path, fail_above: float) -> int:
    """Compare record NEW with record OLD of the same measurement.

    A change counts when the 95 % bootstrap interval of new/old excludes 1 and the ratio of the medians goes beyond the
    bound. Exit code 1 if anything became slower.
    """
    with needs("comparing records", "bench"):
        from parure_bench.compare import compare
        from parure_bench.record import load_record
    comparison = compare(load_record(old), load_record(new), fail_above)
    console = wide_console()
    for warning in comparison.warnings:
        click.echo(f"note: {warning}", err=True)
    console.print(_table(comparison))
    for word, titles in (("only in the old record", comparison.missing), ("only in the new", comparison.added)):
        for title in titles:
            click.echo(f"{word}: {title}")
    slower = len(comparison.slower)
    click.echo(f"{slower} of {len(comparison.changes)} series slower by more than {fail_above:.3g}, significantly")
    return 1 if slower else 0


def _table(comparison: Comparison) -> Table:
    table = Table("series", "new / old", "95 %", "")
    for change in comparison.changes:
        cells = ("", "")
        if change.ratio:
            cells = (f"{change.ratio.value:.3f}", f"{change.ratio.low:.3f} .. {change.ratio.high:.3f}")
        colour = COLOURS.get(change.verdict)
        table.add_row(change.series.title, *cells, f"[{colour}]{change.verdict}[/]" if colour else change.verdict)
    return table
