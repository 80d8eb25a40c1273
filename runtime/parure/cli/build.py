"""`parure build`: bundle -> TensorRT engines."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from parure.bundle import Bundle
from parure.cli.common import needs
from parure.errors import InputError

if TYPE_CHECKING:
    from parure_export.engines.request import Profile


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--target", required=True, help="GPU: a100, h100, rtx-ada, sm80, portable, local, ...")
@click.option("--flavor", type=click.Choice(["tensorrt", "tensorrt-rtx"]), default="tensorrt-rtx", show_default=True)
@click.option("--batch", "batches", default="1", show_default=True, help="Static batch sizes: 1,4,8.")
@click.option("--profile", "ranges", multiple=True, metavar="MIN:OPT:MAX", help="Ranged batch sizes; repeatable.")
@click.option("--component", "components", multiple=True, help="Build only this; repeatable [default: all].")
@click.option("--level", default=3, show_default=True, type=click.IntRange(0, 5), help="Builder optimization level.")
@click.option("--workspace", type=float, help="GB of scratch memory that kernels may use.")
@click.option("--refittable", is_flag=True, help="New weights can be put in without a rebuild.")
@click.option("--strip", is_flag=True, help="Leave the weights out of the plan; they are refitted when it is loaded.")
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in host memory.")
@click.option("--cache", "cache_folder", type=click.Path(path_type=Path), help="Engine cache [default: the user's].")
def command(
    bundle: Path, target: str, flavor: str, batches: str, ranges: tuple[str, ...], components: tuple[str, ...],
    level: int, workspace: float | None, refittable: bool, strip: bool, weight_streaming: bool,
    cache_folder: Path | None,
) -> None:  # fmt: skip
    """Build TensorRT engines of BUNDLE for a GPU, into the bundle; what was built before comes from the cache.

    TensorRT-RTX builds ahead of time, on a machine without a GPU. A static batch size is fastest; a range takes
    every batch between its ends.
    """
    with needs("building engines", "export,tensorrt-rtx"):
        from parure_export.engines.build import build_engines
        from parure_export.engines.cache import EngineCache, default_cache
        from parure_export.engines.request import Options, Profile
        from parure_export.engines.targets import Flavor, resolve
    chosen = Flavor(flavor)
    profiles = [Profile(min=n, opt=n, max=n) for n in _numbers(batches, ",", "--batch")] if batches else []
    for text in ranges:
        profiles.append(_range(text))
    options = Options(
        level=level,
        workspace=None if workspace is None else int(workspace * 1e9),
        refittable=refittable,
        strip=strip,
        weight_streaming=weight_streaming,
    )
    opened = Bundle.open(bundle)
    table = Table("engine", "MB", "seconds", "peak GB", "heavy layers")
    console = Console(stderr=True)
    with console.status("build") as status:

        def watch(engine: str, phase: str, step: int, steps: int) -> None:
            status.update(f"{engine}: {phase} {step} of {steps}")

        for built in build_engines(
            opened, resolve(target, chosen), chosen, profiles,
            options=options, cache=EngineCache(cache_folder or default_cache()), components=components, watch=watch,
            tell=console.log,
        ):  # fmt: skip
            record = built.record
            counts = Counter[str]()
            for types in record.types.values():
                counts.update(types)
            table.add_row(
                built.plan.name,
                f"{record.plan_bytes / 1e6:.1f}",
                "cached" if built.from_cache else f"{record.build_seconds:.1f}",
                f"{record.peak_bytes / 1e9:.2f}",
                ", ".join(f"{count} {kind.lower()}" for kind, count in counts.most_common()),
            )
            console.log(f"{built.plan.name}: {'from the cache' if built.from_cache else 'built'}")
    Console().print(table)
    click.echo(f"engines: {bundle / 'engines'}")


def _numbers(text: str, separator: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(separator)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(f"{option} is {text!r}; expected whole numbers from 1 on, separated by {separator!r}")
    return numbers


def _range(text: str) -> Profile:
    from parure_export.engines.request import Profile

    numbers = _numbers(text, ":", "--profile")
    if len(numbers) != 3 or numbers != sorted(numbers):
        raise InputError(f"--profile is {text!r}; expected MIN:OPT:MAX in rising order, such as 1:4:8")
    return Profile(min=numbers[0], opt=numbers[1], max=numbers[2])
