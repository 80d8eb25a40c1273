"""`parure run`: one picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from parure.cli.common import make_folder
from parure.geometry import Box
from parure.image import load_image, save_png
from parure.locality import megabytes
from parure.pictures import mask_strip
from parure.tryon import Backend, Result, TryOn, Where, open_tryon


@click.command("run")
@click.argument("source", metavar="BUNDLE_OR_URL")
@click.option("--photo", required=True, type=click.Path(), help="Picture of a person (JPEG, PNG, WEBP).")
@click.option("--ornament", required=True, type=click.Path(), help="Picture of the ornament.")
@click.option("--ornament-mask", type=click.Path(), help="Mask of the ornament in its picture.")
@click.option("--box", required=True, metavar="L,T,R,B", help="Where it goes, in photo pixels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for picture, mask and strip.")
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--solver", help="Solver by name [default: the bundle's].")
@click.option("--guidance", type=float, help="Guidance scale; 1 switches it off [default: the bundle's].")
@click.option("--mode", help="exact, or a fast mode by name or settings: docs/fast-modes.md [default: exact].")
@click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default="onnxruntime",
    show_default=True,
    help="What runs a bundle in this process.",
)
@click.option("--join-guidance", is_flag=True, help="Both passes of guidance as one batch, in this process.")
@click.option("--work-ahead", is_flag=True, help="The next step's mask beside this step's U-Net, in this process.")
@click.option(
    "--loop",
    type=click.Choice(["server", "client"]),
    help="Where the loop runs, with a server [default: server, where it has the model for it].",
)
@click.option("--deadline", type=float, default=60.0, show_default=True, help="Seconds for one call to a server.")
@click.option("--shared-memory", is_flag=True, help="Share memory with a server of this host that allows it.")
@click.option("--allow-wire-features", is_flag=True, help="Let the client loop's tensors cross the network.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    source: str, photo: str, ornament: str, ornament_mask: str | None, box: str, out: Path, steps: int | None,
    seed: int, solver: str | None, guidance: float | None, mode: str | None, deadline: float, backend: Backend,
    join_guidance: bool, work_ahead: bool, loop: Where | None, shared_memory: bool, allow_wire_features: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Put an ornament onto a photo, with a bundle in this process or a server at grpc:// or http://.

    Writes picture.png, mask.png and strip.png (the mask at every step) to the folder OUT.
    """
    parsed = Box.parse(box)
    make_folder(out)
    with open_tryon(
        source,
        deadline=deadline,
        backend=backend,
        join_guidance=join_guidance,
        work_ahead=work_ahead,
        loop=loop,
        shared_memory=shared_memory,
        allow_wire_features=allow_wire_features,
    ) as tryon:
        result = _run_with_progress(
            tryon, photo, ornament, parsed, ornament_mask, steps, seed, solver, guidance, mode, quiet=as_json
        )
        transport, place = tryon.loop.name, tryon.loop.place
    paths = {name: out / f"{name}.png" for name in ("picture", "mask", "strip")}
    save_png(paths["picture"], np.asarray(result.image))
    save_png(paths["mask"], np.asarray(result.mask))
    save_png(paths["strip"], mask_strip(load_image(photo), result))
    report = {
        **{name: str(path) for name, path in paths.items()},
        "transport": transport,
        "loop": place,
        "steps": len(result.masks),
        "mode": str(result.mode),
        "seconds": {part: round(seconds, 4) for part, seconds in result.timings.items()},
        "calls": result.calls,
        "spared": result.spared,
        "wire_bytes": asdict(result.wire),
    }
    click.echo(json.dumps(report, indent=2) if as_json else _summary(report))


def _run_with_progress(
    tryon: TryOn, photo: str, ornament: str, box: Box, ornament_mask: str | None, steps: int | None, seed: int,
    solver: str | None, guidance: float | None, mode: str | None, *, quiet: bool,
) -> Result:  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("denoise", total=None)
        for progress in tryon.stream(
            photo, ornament, box, ornament_mask=ornament_mask, steps=steps, seed=seed, solver=solver,
            guidance=guidance, mode=mode, preview="none",
        ):  # fmt: skip
            bar.update(task, total=progress.steps, completed=progress.step)
            if progress.result is not None:
                return progress.result
    raise AssertionError("the loop ended without a result")


def _summary(report: dict[str, object]) -> str:
    seconds = report["seconds"]
    assert isinstance(seconds, dict)
    total = seconds["total"]
    parts = sorted(((p, s) for p, s in seconds.items() if p != "total"), key=lambda item: -item[1])
    lines = [f"{name:8} {report[name]}" for name in ("picture", "mask", "strip")]
    lines.append(f"{total:.2f} s over {report['transport']}: " + ", ".join(f"{p} {s:.2f}" for p, s in parts))
    if report["spared"]:
        assert isinstance(report["spared"], dict)
        spared = ", ".join(f"{count} of {part}" for part, count in report["spared"].items())
        lines.append(f"mode {report['mode']} did without {spared}")
    wire = report["wire_bytes"]
    assert isinstance(wire, dict)
    if any(wire.values()):
        lines.append(f"{megabytes(wire['sent'])} sent, {megabytes(wire['received'])} received")
    return "\n".join(lines)
