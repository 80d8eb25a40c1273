"""`parure bench components`: every component alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.table import Table

from parure.bundle import Bundle
from parure.cli.bench.options import numbers, open_bundles, out_option, rounds_options, typed_command, wide_console
from parure.cli.common import needs
from parure.errors import InputError
from parure.tryon import Backend

if TYPE_CHECKING:
    from parure_bench.record import Series


@click.command("components")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--component", "names", multiple=True, help="Only this one; may be repeated [default: all].")
@click.option(
    "--batch", "batches", default="1", show_default=True, type=numbers, metavar="N,N,...", help="Batch sizes."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    type=click.Choice(get_args(Backend)),
    help="May be repeated; all are measured in turns.",
)
@click.option("--memory/--no-memory", default=True, help="Measure peak memory, each in a process of its own.")
@rounds_options(count=20, warmup=3, settle=0.05)
@out_option("components")
def command(
    bundles: tuple[Path, ...], names: tuple[str, ...], batches: tuple[int, ...], backends: tuple[Backend, ...],
    memory: bool, rounds: int, warmup: int, settle: float, seconds: float | None, out: Path,
) -> None:  # fmt: skip
    """Measure every component of BUNDLE by batch size and backend.

    Bundles of other precisions of the same checkpoint may be named too; all are measured in turns.
    """
    with needs("benchmarks", "bench"):
        from parure_bench.components import ComponentPlan, measure_components
        from parure_bench.limits import limit_here
        from parure_bench.recording import progress, recording
        from parure_bench.sampling import Rounds
    opened = open_bundles(bundles)
    chosen = _chosen(opened, names, batches)
    plan = ComponentPlan(chosen, batches, backends, Rounds(rounds, warmup, seconds or float("inf"), settle), memory)
    with recording(out, "components", typed_command(), opened[0].identity) as run:
        device, note = limit_here()
        run.notes.append(note)
        with progress() as bars:
            measure_components(opened, plan, device, run, bars)
    wide_console().print(_table(run.series))
    click.echo(f"{note}\n{out}")


def _chosen(bundles: Sequence[Bundle], names: tuple[str, ...], batches: tuple[int, ...]) -> tuple[str, ...]:
    """The components to measure; raises `InputError` for what the bundles do not have."""
    first = bundles[0].manifest
    for bundle in bundles:
        if max(batches) > bundle.manifest.max_batch:
            raise InputError(
                f"batch {max(batches)} is more than bundle {bundle.root} takes, {bundle.manifest.max_batch}; choose a "
                "smaller one, or export with --max-batch"
            )
    known = [component.name for component in first.components]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"component {unknown[0]!r} is not in the bundle; it has {', '.join(known)}")
    return names or tuple(known)


def _table(series: list[Series]) -> Table:
    from parure_bench.statistics import summarise

    headings = ("p50 ms", "95 %", "p90", "p99", "per second", "GFLOP/s", "of the limit", "peak MB")
    table = Table("component", "batch", "precision", "backend", *headings)
    for s in series:
        found, figures = summarise(s.samples), s.figures
        times = f"{found.p50.low * 1e3:.2f} .. {found.p50.high * 1e3:.2f}"
        share = f"{figures['share_of_peak']:.0%}" if "share_of_peak" in figures else ""
        peak = f"{figures['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in figures else ""
        table.add_row(
            s.name, *(str(s.labels[label]) for label in ("batch", "precision", "backend")), f"{found.p50.value * 1e3:.2f}",
            times, f"{found.p90 * 1e3:.2f}", f"{found.p99 * 1e3:.2f}", f"{figures['per_second']:.1f}",
            f"{figures['flops_per_second'] / 1e9:.1f}", share, peak,
        )  # fmt: skip
    return table
