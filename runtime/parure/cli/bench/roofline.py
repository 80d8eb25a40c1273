"""`parure bench roofline`: what a device could do at best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from parure.bundle import Bundle
from parure.cli.bench.options import out_option, share, typed_command, wide_console
from parure.cli.common import needs
from parure.manifest import Precision

if TYPE_CHECKING:
    from parure_bench.record import Series


@click.command("roofline")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", default="a100", show_default=True, help="A GPU by name, or cpu: this machine's, measured.")
@click.option("--precision", type=click.Choice([p.value for p in Precision]), help="[default: the bundle's]")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Pictures that run together.")
@click.option("--steps", type=click.IntRange(1), help="[default: the bundle's]")
@click.option("--guidance", type=float, help="1: a single pass a step [default: the bundle's].")
@click.option("--reached", type=share, metavar="SHARE", help="Also the times at this share of the bound, such as 32%.")
@out_option("roofline")
def command(
    bundle: Path, device: str, precision: str | None, batch: int, steps: int | None, guidance: float | None,
    reached: float | None, out: Path,
) -> None:  # fmt: skip
    """Say how quick BUNDLE can be at most on a device, by component, step and picture, and what saving work gives.

    Counted from the graphs: products of matrices, weights, and tensors that enter and leave a graph.
    """
    with needs("benchmarks", "bench"):
        from parure_bench.devices import find_device
        from parure_bench.recording import recording
        from parure_bench.roofline import roofline
    limits = find_device(device)
    opened = Bundle.open(bundle)
    loop = opened.manifest.loop
    asked = Precision(precision) if precision else opened.manifest.precision
    scale = loop.default_guidance if guidance is None else guidance
    with recording(out, "roofline", typed_command(), opened.identity) as run:
        run.notes.append(f"{limits.name}: {limits.source}")
        run.series += roofline(opened, limits, asked, batch, steps or loop.default_steps, guided=scale != 1.0)
    console = wide_console()
    peak = f"{limits.peak(asked) / 1e12:.3g} TFLOP/s in {asked}, {limits.bandwidth / 1e12:.3g} TB/s"
    console.print(f"[bold]{limits.name}[/]: {peak} ({limits.source})")
    console.print(_components(run.series))
    console.print(_ladder(run.series, reached))
    click.echo(out)


def _components(series: list[Series]) -> Table:
    table = Table(
        "component", "GFLOP", "weights MB", "tensors MB", "compute ms", "memory ms", "at least ms", "bound by"
    )
    for s in series:
        if s.name in ("picture", "step"):
            continue
        f = s.figures
        bound = "compute" if f["compute_seconds"] >= f["memory_seconds"] else "memory"
        sizes = (f"{f[name] / 1e6:.1f}" for name in ("weight_bytes", "boundary_bytes"))
        times = (f"{f[name] * 1e3:.3f}" for name in ("compute_seconds", "memory_seconds", "bound_seconds"))
        table.add_row(s.name, f"{f['flops'] / 1e9:.2f}", *sizes, *times, bound)
    return table


def _ladder(series: list[Series], reached: float | None) -> Table:
    pictures = [s for s in series if s.name == "picture"]
    steps = [s for s in series if s.name == "step"]
    slowest = max(s.figures["bound_seconds"] for s in pictures)
    headings = [f"at {reached:.0%}, ms"] if reached else []
    table = Table("saved, one after the other", "exact", "TFLOP", "step ms", "picture ms", "gain", *headings)
    for picture, step in zip(pictures, steps, strict=True):
        bound = picture.figures["bound_seconds"]
        expected = [f"{bound / reached * 1e3:.0f}"] if reached else []
        table.add_row(
            str(picture.labels["saved"]), str(picture.labels["exact"]), f"{picture.figures['flops'] / 1e12:.3g}",
            f"{step.figures['bound_seconds'] * 1e3:.3f}", f"{bound * 1e3:.2f}", f"{slowest / bound:.2f} x", *expected,
        )  # fmt: skip
    return table
