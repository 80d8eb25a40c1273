"""`parure bench serve`: a server under load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from parure.cli.bench.options import numbers, out_option, typed_command, wide_console
from parure.cli.common import needs
from parure.errors import InputError
from parure.tryon import open_tryon

if TYPE_CHECKING:
    from parure_bench.record import Series


def rates(text: str) -> tuple[float, ...]:
    """`2/s,4/s` or `none`, as pictures a second; for `type=`."""
    from parure_bench.plan.quantities import parse_rate

    try:
        return () if text == "none" else tuple(parse_rate(part, "--rates") for part in text.split(","))
    except InputError as error:
        raise click.BadParameter(str(error)) from error


@click.command("serve")
@click.argument("url")
@click.option("--loop", "loops", multiple=True, type=click.Choice(["server", "client"]),
              help="Where the loop runs; repeatable [default: server].")  # fmt: skip
@click.option("--cache", "caches", multiple=True, type=click.Choice(["warm", "cold"]),
              help="Ornaments seen before, or a new one for every picture; repeatable [default: warm].")  # fmt: skip
@click.option("--ornaments", default=1, show_default=True, type=click.IntRange(1), help="Distinct ones, when warm.")
@click.option("--concurrency", default="1,2,4,8,16", show_default=True, type=numbers, metavar="N,N,...",
              help="Callers who ask again when answered.")  # fmt: skip
@click.option("--rates", "offered", type=rates, metavar="R,R,...",
              help="Arrivals at random, such as 2/s,4/s; none [default: shares of the highest throughput].")  # fmt: skip
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="For each level.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the arrivals.")
@click.option("--photo", type=click.Path(path_type=Path), help="With --ornament and --box [default: the demo's].")
@click.option("--ornament", type=click.Path(path_type=Path))
@click.option("--box", metavar="L,T,R,B")
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@click.option("--deadline", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True),
              help="Seconds for one request.")  # fmt: skip
@click.option("--metrics", help="URL of Triton's metrics [default: port 8002 of the server].")
@click.option("--allow-wire-features", is_flag=True, help="Let the client loop's tensors cross the network.")
@out_option("serve")
def command(
    url: str, loops: tuple[str, ...], caches: tuple[str, ...], ornaments: int, concurrency: tuple[int, ...],
    offered: tuple[float, ...] | None, seconds: float, seed: int, photo: Path | None, ornament: Path | None,
    box: str | None, steps: int | None, deadline: float, metrics: str | None, allow_wire_features: bool, out: Path,
) -> None:  # fmt: skip
    """Latency and throughput of the server at URL by concurrency and by arrival rate, and the knee of both.

    Arrivals are a Poisson process, and latency counts from the moment that a request was due. A server that dies in
    mid-run ends it with exit code 1; what was measured is written, and marked incomplete.
    """
    with needs("measuring a server", "bench,export,cpu"):
        from parure_bench.recording import recording
        from parure_bench.serve.counters import metrics_url
        from parure_bench.serve.inputs import cases
        from parure_bench.serve.levels import Extent
        from parure_bench.serve.run import curves_of, serve_series

        given = cases(photo, ornament, box)
    chosen = curves_of(loops or ("server",), caches or ("warm",))  # type: ignore[arg-type]
    extent = Extent(concurrency, offered, seconds, seed)
    console = Console(stderr=True)
    found: list[Series] = []
    with open_tryon(url, deadline=deadline, loop=chosen[0].loop, allow_wire_features=allow_wire_features) as tryon:
        try:
            with recording(out, "serve", typed_command(), tryon.loop.identity) as run:
                for series in serve_series(
                    run, url, tryon, chosen, given, extent, steps=steps, ornaments=ornaments, deadline=deadline,
                    metrics=metrics or metrics_url(url), allow_wire_features=allow_wire_features,
                    say=lambda text: console.print(text, highlight=False),
                ):  # fmt: skip
                    console.print(_line(series), highlight=False)
                    found.append(series)
        finally:
            if found:
                wide_console().print(_table(found))
    click.echo(f"record: {out}")


def _table(found: list[Series]) -> Table:
    """Curve by curve, though they were measured level by level."""
    table = Table("loop", "ornaments", "load", "requests", "throughput /s", "p50 s", "p99 s", "U-Net batch", "failed")
    curves = list(dict.fromkeys(_curve(series) for series in found))
    for series in sorted(found, key=lambda series: curves.index(_curve(series))):
        table.add_row(*_row(series))
    return table


def _curve(series: Series) -> tuple[str, str]:
    return str(series.labels["loop"]), str(series.labels["ornaments"])


def _load(series: Series) -> str:
    if "rate" in series.labels:
        return f"{series.labels['rate']:g}/s"
    return f"{series.labels.get('concurrency', '')} at once"


def _row(series: Series) -> list[str]:
    figures = series.figures
    if series.name == "knee":
        load = f"[bold]knee: {figures['load']:.3g}{'/s' if series.labels['by'] == 'rate' else ' at once'}[/]"
        counted, failed = "", ""
    else:
        load, counted = _load(series), f"{figures['requests']:.0f}"
        failed = ", ".join(
            f"{count:.0f} {name.removeprefix('errors.')}" for name, count in figures.items() if "errors." in name
        )
    cells = [_number(figures.get(name)) for name in ("throughput", "p50", "p99", "mean_unet_batch")]
    return [*_curve(series), load, counted, *cells, failed]


def _line(series: Series) -> str:
    loop, ornaments, load, counted, throughput, p50, p99, *_ = _row(series)
    what = f"  {loop} loop, {ornaments}, {load}"
    return f"{what}: {counted} requests, {throughput}/s, p50 {p50} s, p99 {p99} s" if counted else what


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
