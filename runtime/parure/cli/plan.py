"""`parure plan`: how many GPUs, with which settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from parure.cli.common import needs
from parure.errors import InputError

if TYPE_CHECKING:
    from parure_bench.plan.check import Check
    from parure_bench.plan.search import Ground, Plan
    from parure_bench.plan.times import Times

BATCHES = (1, 2, 4, 8, 16)
STEPS = 30


@click.command("plan")
@click.option("--rate", metavar="200/s", help="Pictures to serve; also 12000/min, 5000/h.")
@click.option("--p99", metavar="2s", help="99 % of the pictures are done within this; also 500ms.")
@click.option("--device", help="a100, h100, h200, ...; cpu is this machine's [default: that of the records].")
@click.option("--records", multiple=True, type=click.Path(path_type=Path),
              help="Of `parure bench components` on the device; repeatable [default: the roofline].")  # fmt: skip
@click.option("--backend", help="Of the records [default: the fastest].")
@click.option("--bundle", type=click.Path(path_type=Path), help="For the roofline [default: the size of SD 1.5, fp16].")
@click.option("--efficiency", type=click.FloatRange(0, 1, min_open=True),
              help="Share of the roofline that is reached [default: 0.32].")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Denoising steps [default: the bundle's, or 30].")
@click.option("--guidance", is_flag=True, help="Two passes of the U-Net in every step.")
@click.option("--cached", default=1.0, show_default=True, type=click.FloatRange(0, 1),
              help="Share of pictures whose ornament is in the cache.")  # fmt: skip
@click.option("--max-batch", default=8, show_default=True, type=click.IntRange(1), help="Largest batch limit to try.")
@click.option("--instances", default=1, show_default=True, type=click.IntRange(1), help="Of a component, on each GPU.")
@click.option("--host-ms", default=0.0, show_default=True, type=click.FloatRange(0),
              help="Milliseconds of the host around each call of a component.")  # fmt: skip
@click.option("--pictures", default=1000, show_default=True, type=click.IntRange(100), help="In each simulation.")
@click.option("--replications", default=5, show_default=True, type=click.IntRange(3, 10))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--check", "check_record", type=click.Path(path_type=Path), metavar="SERVE_RECORD",
              help="Instead: predict what `parure bench serve` measured.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    rate: str | None, p99: str | None, device: str | None, records: tuple[Path, ...], backend: str | None,
    bundle: Path | None, efficiency: float | None, steps: int | None, guidance: bool, cached: float, max_batch: int,
    instances: int, host_ms: float, pictures: int, replications: int, seed: int, check_record: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Simulate the server loop with continuous batching: how many GPUs, which batch limit, how many pictures at work.

    Component times come from records measured on the device, or from its roofline. Exit code 1 where the p99 cannot
    be met at all.
    """
    with needs("planning", "bench"):
        from parure_bench.plan.check import check
        from parure_bench.plan.quantities import parse_duration, parse_rate
        from parure_bench.plan.search import Ground, Promise, plan
        from parure_bench.plan.simulate import Host
        from parure_bench.plan.workload import Workload
        from parure_bench.record import load_record
    if check_record is not None:
        if not records:
            raise InputError("--check needs component times; name records of `parure bench components` with --records")
        found_check = check(_measured(records, backend, device), load_record(check_record), seed=seed)
        click.echo(json.dumps(_check_json(found_check), indent=2)) if as_json else _show_check(found_check)
        return
    if rate is None or p99 is None:
        raise InputError("--rate and --p99 say what to plan for; give both, such as --rate 200/s --p99 2s")
    promise = Promise(parse_rate(rate), parse_duration(p99, "--p99"))
    batches = tuple(batch for batch in BATCHES if batch <= max_batch)
    if records:
        if bundle is not None or efficiency is not None:
            raise InputError("--bundle and --efficiency are of a roofline, and --records take its place; drop one side")
        times, default_steps = _measured(records, backend, device), STEPS
        batches = tuple(batch for batch in batches if batch <= times.largest_batch)
    else:
        times, default_steps = _roofline(device, bundle, batches, efficiency)
    workload = Workload(steps or default_steps, 2 if guidance else 1, cached)
    times.require(set(workload.counts()))
    ground = Ground(times, workload, Host(host_ms / 1e3, _host_demand(records, device)), instances=instances)
    console = Console(stderr=True)
    with console.status("simulating ...") as status:
        found = plan(
            ground, promise, max_batches=batches, replications=replications, pictures=pictures, seed=seed,
            tried=lambda trial: status.update(
                f"simulating: batches up to {trial.setting.max_batch}, {trial.setting.at_work} at work: "
                f"{trial.rate:.3g}/s on one GPU"
            ),
        )  # fmt: skip
    click.echo(json.dumps(_plan_json(found, ground), indent=2)) if as_json else _show(found, ground)


def _measured(records: tuple[Path, ...], backend: str | None, device: str | None) -> Times:
    from parure_bench.devices import HERE, find_device
    from parure_bench.plan.times import measured_times
    from parure_bench.record import load_record

    loaded = [load_record(path) for path in records]
    where = loaded[0].environment.device
    if device is not None and device != HERE and find_device(device).name != where:
        raise InputError(f"device is {device!r}, and the records were measured on {where}; drop --device or --records")
    return measured_times(loaded, backend)


def _host_demand(records: tuple[Path, ...], device: str | None) -> float:
    """On a CPU the loop takes a core from the components; beside a GPU it takes nothing from them."""
    from parure_bench.devices import HERE
    from parure_bench.environment import environment
    from parure_bench.record import load_record

    if records:
        where = load_record(records[0]).environment
        return 0.0 if where.gpus else 1 / where.cores
    return 1 / environment().cores if device == HERE else 0.0


def _roofline(
    device: str | None, bundle: Path | None, batches: tuple[int, ...], efficiency: float | None
) -> tuple[Times, int]:
    from parure.bundle import Bundle
    from parure.manifest import Precision
    from parure_bench.devices import find_device
    from parure_bench.plan.times import EFFICIENCY, SD15, roofline_times
    from parure_bench.roofline import count

    if device is None:
        raise InputError("nothing says what device to plan for; give --device, such as a100, or --records")
    costs, precision, steps = SD15, Precision.FP16, STEPS
    if bundle is not None:
        opened = Bundle.open(bundle)
        precision, steps = opened.manifest.precision, opened.manifest.loop.default_steps
        costs = count(opened, precision)
    return roofline_times(costs, find_device(device), precision, batches, efficiency or EFFICIENCY), steps


def _show(found: Plan, ground: Ground) -> None:
    from parure_bench.plan.quantities import spoken

    console = Console()
    setting, confirmed = found.setting, found.confirmed
    console.print(
        f"[bold]{confirmed.gpus} x[/] for {found.promise.rate:g} pictures/s with p99 <= {spoken(found.promise.p99)}: "
        f"{found.promise.rate / confirmed.gpus:.3g}/s on each, {ground.times.source}",
        highlight=False,
    )
    console.print(
        f"parure repo ... --max-batch {setting.max_batch} --at-work {setting.at_work} "
        f"--queue-delay {setting.delay * 1e6:.0f} --instances {ground.instances}",
        highlight=False,
    )
    table = Table("GPUs", "p50", "p99", "95 %", "in use", "mean U-Net batch", "refused")
    for each in filter(None, (found.short, confirmed)):
        p99 = each.p99
        kept = p99.value <= found.promise.p99
        late = ("endless", "a queue that grows") if p99.value == float("inf") else (
            spoken(p99.value), f"{spoken(max(p99.low, 0))} .. {spoken(p99.high)}"
        )  # fmt: skip
        middle = "" if p99.value == float("inf") else spoken(each.p50.value)
        table.add_row(
            f"{each.gpus}" if kept else f"[red]{each.gpus}[/]", middle, *late, f"{each.utilisation:.0%}",
            f"{each.unet_batch:.2f}", f"{each.refused:.1%}",
        )  # fmt: skip
    console.print(table)
    if confirmed.p99.high > found.promise.p99:
        console.print(
            "the interval reaches beyond the promise: be sure with a few more, or more --pictures", highlight=False
        )
    console.print(_distribution(confirmed.latencies, found.promise.p99))
    trials = Table("batch limit", "at work", "queue delay", "pictures/s on one GPU")
    for trial in sorted(found.trials, key=lambda trial: -trial.rate):
        rate = f"{trial.rate:.3g}" if trial.rate else "less than the best"
        cells = str(trial.setting.max_batch), str(trial.setting.at_work), f"{trial.setting.delay * 1e3:g} ms"
        trials.add_row(*cells, rate)
    console.print(trials)
    console.print(f"a picture alone: {spoken(found.alone)}", highlight=False)


def _distribution(latencies: tuple[float, ...], limit: float, rows: int = 12, width: int = 40) -> Table:
    import numpy as np

    from parure_bench.plan.quantities import spoken

    table = Table("latency up to", "share", "", show_edge=False)
    finite = [latency for latency in latencies if latency < float("inf")]
    counts, edges = np.histogram(finite, bins=rows)
    for count, edge in zip(counts, edges[1:], strict=True):
        bar = "█" * round(width * count / max(counts.max(), 1))
        table.add_row(spoken(float(edge)), f"{count / len(latencies):.1%}", f"[red]{bar}[/]" if edge > limit else bar)
    return table


def _plan_json(found: Plan, ground: Ground) -> dict[str, Any]:
    content = asdict(found)
    for side in ("confirmed", "short"):
        if content[side] is not None:
            content[side].pop("latencies")
    return {"source": ground.times.source, "workload": asdict(ground.workload), **_finite(content)}


def _finite(value: Any) -> Any:
    """JSON has no infinity: None."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if value == float("inf") else value


def _check_json(found: Check) -> dict[str, Any]:
    return {
        "host_seconds_per_call": found.host.seconds_per_call,
        "fitted": found.fitted,
        "median_error": {name: found.median_error(name) for name in ("throughput", "p50", "p99")},
        "levels": [asdict(level) for level in found.levels],
    }


def _show_check(found: Check) -> None:
    table = Table(
        "load", *(f"{name}{unit}" for name in ("p50", "p99", "throughput") for unit in ("", " predicted", " error"))
    )
    for level in found.levels:
        cells = []
        for name in ("p50", "p99", "throughput"):
            cells += [f"{level.measured[name]:.3g}", f"{level.predicted[name]:.3g}", f"{level.error(name):+.0%}"]
        table.add_row(level.load + (" (fitted)" if level.load in found.fitted else ""), *cells)
    console = Console()
    console.print(table)
    errors = ", ".join(f"{name} {found.median_error(name):.0%}" for name in ("p50", "p99", "throughput"))
    console.print(f"median error of what was not fitted: {errors}", highlight=False)
    console.print(f"around each call: {found.host.seconds_per_call * 1e3:.2f} ms of the host, fitted")
