"""`parure bench loop`: the whole picture, and its peers."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.table import Table

from parure.cli.bench.options import numbers, open_bundles, out_option, rounds_options, typed_command, wide_console
from parure.cli.common import needs
from parure.errors import InputError
from parure.modes import read_mode
from parure.tryon import Backend

if TYPE_CHECKING:
    from parure_bench.record import Series
    from parure_bench.shots import Shot

BACKENDS = (*get_args(Backend), "torch", "torch-compile")


@click.command("loop")
@click.argument("bundles", metavar="BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--steps", type=numbers, metavar="N,N,...", help="[default: the bundle's]")
@click.option("--guidance", "guidances", multiple=True, type=float, help="May be repeated [default: the bundle's].")
@click.option("--solver", "solvers", multiple=True, help="May be repeated [default: the bundle's].")
@click.option("--box-mask", is_flag=True, help="Also without the mask loop: the mask stays the box.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    type=click.Choice(BACKENDS),
    help="May be repeated. The first one is also measured with less saved, down to nothing.",
)
@click.option("--mode", "modes", multiple=True, help="A fast mode beside exact, on the first backend; may be repeated.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The bundle's; adds papers' loop in PyTorch.")
@click.option("--curve", "curves", multiple=True, metavar="AXIS=LOW:HIGH", help="steps, batch or ornament-repeats.")
@click.option("--apart", is_flag=True, help="One backend after the other, where memory holds only one.")
@click.option("--photo", type=click.Path(), help="With --ornament and --box; by default drawn pictures of 512 px.")
@click.option("--ornament", type=click.Path())
@click.option("--box", metavar="L,T,R,B")
@rounds_options(count=10, warmup=1, settle=0.2)
@out_option("loop")
def command(
    bundles: tuple[Path, ...], steps: tuple[int, ...] | None, guidances: tuple[float, ...], solvers: tuple[str, ...],
    box_mask: bool, backends: tuple[str, ...], modes: tuple[str, ...], checkpoint: Path | None, curves: tuple[str, ...],
    apart: bool, photo: str | None, ornament: str | None, box: str | None, rounds: int, warmup: int,
    settle: float, seconds: float | None, out: Path,
) -> None:  # fmt: skip
    """Measure whole pictures with BUNDLE: ours on every backend, and loops that save less or more, all in turns.

    Further bundles of the same checkpoint (projected features, another precision) run on the first backend.
    """
    with needs("benchmarks", "bench"):
        from parure_bench.curves import Curve, measure_curves
        from parure_bench.loop import measure_loop
        from parure_bench.peers import Setting, executor_peer
        from parure_bench.recording import progress, recording
        from parure_bench.sampling import Rounds
    opened = open_bundles(bundles)
    first, default = opened[0], opened[0].manifest.loop
    wanted_curves = [Curve.parse(curve) for curve in curves]
    for mode in modes:
        read_mode(mode, first.manifest)
    shot = _shot(photo, ornament, box)
    choices = product(
        steps or (default.default_steps,), solvers or (default.default_solver,),
        guidances or (default.default_guidance,), (True, False) if box_mask else (True,),
    )  # fmt: skip
    settings = [Setting(*chosen) for chosen in choices]
    torch_too = checkpoint is not None and not any(backend.startswith("torch") for backend in backends)
    peers = [executor_peer(first, backends[0], checkpoint, shot, ablation=True, modes=modes)]
    for backend in (*backends[1:], *(("torch",) if torch_too else ())):
        peers.append(executor_peer(first, backend, checkpoint, shot, ablation=backend == "torch"))
    peers += [executor_peer(other, backends[0], checkpoint, shot, ablation=False) for other in opened[1:]]
    plan = Rounds(rounds, warmup, seconds or float("inf"), settle)
    with recording(out, "loop", typed_command(), first.identity) as run, progress() as bars:
        measure_loop(peers, settings, plan, run, bars, apart=apart)
        measure_curves(wanted_curves, peers[0], settings[0], plan, run, bars)
    _print(run.series, backends[0])
    click.echo(out)


def _shot(photo: str | None, ornament: str | None, box: str | None) -> Shot:
    from parure_bench.shots import drawn_shot, given_shot

    if photo is not None and ornament is not None and box is not None:
        return given_shot(photo, ornament, box)
    if (photo, ornament, box) != (None, None, None):
        raise InputError("--photo, --ornament and --box go together; give all three, or none")
    return drawn_shot()


def _print(series: list[Series], backend: str) -> None:
    console = wide_console()
    console.print(_pictures(series))
    console.print(_parts(series, backend))
    for one in series:
        if one.name == "slope":
            console.print(_slope(one), highlight=False)


def _pictures(series: list[Series]) -> Table:
    from parure_bench.statistics import summarise

    headings = ("p50 s", "95 %", "x naive", "95 %", "dB", "overhead")
    table = Table("steps", "guidance", "mask", "backend", "precision", "loop", "ornament", *headings)
    overheads = {s.key[1]: s for s in series if s.name == "loop overhead"}
    for s in series:
        if s.name != "picture" or "curve" in s.labels:
            continue
        found, figures = summarise(s.samples), s.figures
        gain = ("", "")
        if "speedup" in figures:
            gain = f"{figures['speedup']:.2f}", f"{figures['speedup_low']:.2f} .. {figures['speedup_high']:.2f}"
        overhead = overheads.get(s.key[1])
        table.add_row(
            *(str(s.labels[name]) for name in ("steps", "guidance", "mask", "backend", "precision", "loop", "ornament")),
            f"{found.p50.value:.3f}", f"{found.p50.low:.3f} .. {found.p50.high:.3f}", *gain,
            f"{figures['psnr_db']:.0f}", f"{summarise(overhead.samples).p50.value:.2%}" if overhead else "",
        )  # fmt: skip
    return table


def _parts(series: list[Series], backend: str) -> Table:
    """Where the time of a picture goes: our loop on `backend`, ornament kept, the first setting."""
    from parure_bench.statistics import summarise

    table = Table("part", "p50 ms", "calls in a picture", "ms in a picture")
    ours = {"backend": backend, "loop": "exact", "ornament": "kept"}
    mine = [s for s in series if s.unit == "s" and ours.items() <= s.labels.items() and "curve" not in s.labels]
    for s in mine:
        if s.labels != mine[0].labels:
            continue
        middle = summarise(s.samples).p50.value * 1e3
        calls = s.figures.get("calls_per_picture", 1)
        table.add_row(s.name, f"{middle:.2f}", f"{calls:g}", f"{middle * calls:.1f}")
    return table


def _slope(series: Series) -> str:
    f = series.figures
    return (
        f"by {series.labels['curve']}: {f['slope']:.4g} {series.unit} ({f['slope_low']:.4g} .. {f['slope_high']:.4g}), "
        f"and {f['intercept']:.4g} s besides"
    )
