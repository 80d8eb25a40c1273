"""`parure bench quality`: what fast modes save, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from parure.cli.bench.options import out_option, typed_command
from parure.cli.common import needs
from parure.tryon import open_tryon

if TYPE_CHECKING:
    from parure_bench.quality import Found


@click.command("quality")
@click.argument("source", metavar="BUNDLE_OR_URL")
@out_option("quality")
@click.option("--mode", "modes", multiple=True, help="Compare these with exact; repeatable [default: a whole set].")
@click.option("--triplets", default=32, show_default=True, type=click.IntRange(1), help="Held-out triplets.")
@click.option("--deadline", type=float, default=60.0, show_default=True, help="Seconds for one call to a server.")
def command(source: str, out: Path, modes: tuple[str, ...], triplets: int, deadline: float) -> None:
    """Make held-out pictures in every mode, in turns, and compare them with exact's and with the truth.

    By default every preset, every setting alone, fewer steps and another solver; what is on the Pareto frontier of
    speed and PSNR against exact is marked.
    """
    with needs("measuring quality", "cpu,export,bench"):
        from parure_bench.quality import Tally, measure, series, verdict, ways
        from parure_bench.recording import progress, recording
    with open_tryon(source, deadline=deadline) as tryon:
        tally = Tally(tuple(ways(tryon.manifest, modes)))
        with recording(out, "quality", typed_command(), tryon.identity) as run, progress() as bars:
            run.notes.append(f"{triplets} held-out triplets, {tryon.loop.place} loop over {tryon.loop.name}")
            task = bars.add_task("pictures", total=len(tally.ways) * (triplets + 1))
            try:
                measure(tryon, tally, triplets, lambda name: bars.advance(task))
            finally:
                run.series.extend(s for one in tally.found() for s in series(one))
                run.notes.append(verdict(tally.found()))
    Console().print(_table(tally.found()))
    click.echo(f"{run.notes[-1]}\n{out}")


def _table(found: list[Found]) -> Table:
    table = Table(title="speed and fidelity against exact; * on the frontier")
    table.add_column("mode")
    for name in ("speed", "95 %", "PSNR", "least", "SSIM", "IoU"):  # what is against the truth stands in the record
        table.add_column(name, no_wrap=True)
    for one in found:
        means = {name: sum(values) / len(values) for name, values in one.fidelity.items()}
        table.add_row(
            f"{'* ' if one.frontier else '  '}{_title(one)}",
            f"{one.speed.value:.2f} x",
            f"{one.speed.low:.2f}..{one.speed.high:.2f}",
            f"{means['psnr_exact']:.1f}",
            f"{min(one.fidelity['psnr_exact']):.1f}",
            f"{means['ssim_exact']:.4f}",
            f"{means['mask_iou_exact']:.3f}",
        )
    return table


def _title(found: Found) -> str:
    way = found.way
    return way.mode if way.axis == "mode" else f"{way.steps} steps of {way.solver}"
