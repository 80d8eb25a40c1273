"""`parure evaluate`: a bundle against held-out triplets."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from parure.cli.common import make_folder, needs
from parure.image import save_png
from parure.tryon import open_tryon


@click.command("evaluate")
@click.argument("source", metavar="BUNDLE_OR_URL")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for report and pictures.")
@click.option("--triplets", default=64, show_default=True, type=click.IntRange(1), help="Held-out triplets.")
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
def command(source: str, out: Path, triplets: int, steps: int | None) -> None:
    """Score a bundle on triplets that training never saw; writes evaluation.json and evaluation.png to OUT."""
    with needs("evaluating", "cpu,export"):
        from parure_export.demo.evaluate import Example, Score, evaluate, summary
    from parure.pictures import Row, contact_sheet

    make_folder(out)
    scores: list[Score] = []
    examples: list[Example] = []
    with open_tryon(source) as tryon:
        console = Console(stderr=True)
        for example in track(evaluate(tryon, triplets, steps=steps), "evaluate", total=triplets, console=console):
            scores.append(example.score)
            if len(examples) < 16:
                examples.append(example)
    report = summary(scores)
    (out / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
    rows = [
        Row(
            f"{e.score.kind}: mask IoU {e.score.mask_iou:.2f}, {e.score.psnr_loop:.1f} dB, without the loop "
            f"{e.score.psnr_no_loop:.1f} dB",
            [
                ("photo", e.triplet.photo),
                ("ornament", e.triplet.ornament),
                ("with the mask loop", np.asarray(e.result.image)),
                ("without it", np.asarray(e.without_loop.image)),
                ("truth", e.triplet.target),
                ("mask", _grey(e.result.masks[-1])),
                ("true mask", _grey(e.triplet.wearing_mask)),
            ],
        )
        for e in examples
    ]
    save_png(out / "evaluation.png", contact_sheet("Held-out triplets", source, rows, tile=160))
    _print(report, out)


def _grey(mask: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.repeat(np.rint(np.clip(mask, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _print(report: dict[str, object], out: Path) -> None:
    table = Table("", "mask IoU", "box IoU", "PSNR, loop", "PSNR, no loop")
    by_kind = report["by_kind"]
    assert isinstance(by_kind, dict)
    for name, row in {**by_kind, "all": report}.items():
        cells = [f"{row[m]:.3f}" for m in ("mask_iou", "box_iou")]
        cells += [f"{row[m]:.2f} dB" for m in ("psnr_loop", "psnr_no_loop")]
        table.add_row(name, *cells)
    Console().print(table)
    click.echo(f"{out / 'evaluation.json'}\n{out / 'evaluation.png'}")
