"""`parure bench perf-analyzer`: NVIDIA's tool and ours on one server."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from parure.cli.bench.options import numbers, out_option, typed_command, wide_console
from parure.cli.common import make_folder, needs
from parure.tryon import open_tryon


@click.command("perf-analyzer")
@click.argument("url")
@click.option("--concurrency", default="1,2,4,8", show_default=True, type=numbers, metavar="N,N,...")
@click.option("--requests", default=40, show_default=True, type=click.IntRange(1), help="Of each tool at each level.")
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@click.option("--photo", type=click.Path(path_type=Path), help="With --ornament and --box [default: the demo's].")
@click.option("--ornament", type=click.Path(path_type=Path))
@click.option("--box", metavar="L,T,R,B")
@click.option("--deadline", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--admin-key", envvar="PARURE_ADMIN_KEY", help="The server's; perf_analyzer reads its statistics.")
@click.option("--cache", default="out/perf_analyzer", show_default=True, type=click.Path(path_type=Path),
              help="Where perf_analyzer is kept; it is fetched once, with pip and apt-get.")  # fmt: skip
@out_option("perf-analyzer")
def command(
    url: str, concurrency: tuple[int, ...], requests: int, steps: int | None, photo: Path | None,
    ornament: Path | None, box: str | None, deadline: float, admin_key: str | None, cache: Path,
    out: Path,
) -> None:  # fmt: skip
    """Drive the model tryon_unary at URL with NVIDIA's perf_analyzer, and the server loop with our own load, in turns.

    Both ask for the same pictures. Any request that fails fails the command.
    """
    with needs("measuring a server", "bench,export,cpu"):
        from parure_bench.perf_analyzer import Analyzed, analyzed, fetched, write_inputs
        from parure_bench.recording import recording
        from parure_bench.serve.inputs import Asker, cases
        from parure_bench.serve.levels import Curve, level
        from parure_bench.serve.load import closed_loop

        given = cases(photo, ornament, box)
    make_folder(cache)
    with open_tryon(url, deadline=deadline, loop="server") as tryon:
        analyzer = fetched(cache.resolve())
        inputs = cache.resolve() / "inputs.json"
        write_inputs(inputs, given, steps, tryon.manifest)
        ask = Asker(tryon, given, steps, 1, cold=False)
        table = Table("callers", "perf_analyzer /s", "ours /s", "ratio", "perf_analyzer p50 s", "ours p50 s", "ratio")
        with recording(out, "serve", typed_command(), tryon.loop.identity) as run:
            ask.warm()
            analyzed(
                analyzer, url, inputs, 1, len(given), cache.resolve(), admin_key
            )  # its model has a cache for itself
            for callers in concurrency:
                theirs: Analyzed = analyzed(
                    analyzer, url, inputs, callers, max(requests, callers), cache.resolve(), admin_key
                )
                run.series.append(theirs.series())
                taken = closed_loop(ask, callers, requests / theirs.throughput, lambda: True)
                ours = level(Curve("server", "warm"), "concurrency", callers, taken, {})
                run.series.append(ours)
                table.add_row(str(callers), *_side_by_side(theirs.throughput, ours.figures["throughput"]),
                              *_side_by_side(theirs.p50, ours.figures.get("p50", float("nan"))))  # fmt: skip
    wide_console().print(table)
    click.echo(out)


def _side_by_side(theirs: float, ours: float) -> tuple[str, str, str]:
    return f"{theirs:.3g}", f"{ours:.3g}", f"{ours / theirs:.2f}"
