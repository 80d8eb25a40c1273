"""The demo: checkpoint -> bundle -> model repository -> real Triton -> pictures, with every stage kept for reuse."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parure.bundle import Bundle, identity_of
from parure.errors import BundleError
from parure.geometry import Box
from parure.image import Pixels, save_png
from parure.manifest import MANIFEST_NAME
from parure.modes import has_deep
from parure.pictures import Row, contact_sheet, mask_strip, outlined
from parure.tryon import Result, TryOn, Where, open_tryon
from parure_export.checkpoint import checkpoint_hash
from parure_export.demo.evaluate import evaluate, summary
from parure_export.demo.render import (
    ASTRONAUT_EARRING_BOX,
    ASTRONAUT_NECKLACE_BOX,
    Kind,
    render_scene,
    render_triplet,
)
from parure_export.demo.scenes import photograph
from parure_export.export import export_bundle
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

CHECKPOINT = Path(__file__).parent / "checkpoint"
HELD_OUT_TRIPLETS = 64
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shot:
    """One picture of the demo: what goes where."""

    name: str
    title: str
    photo: Pixels
    ornament: Pixels
    box: Box


def run_demo(
    out: Path, say: Say, *, steps: int | None = None, triplets: int = HELD_OUT_TRIPLETS, loop: Where = "server"
) -> Path:
    """Run the whole way into `out`; returns the contact sheet's path. What is already there is reused."""
    started = time.perf_counter()
    bundle = prepared_bundle(out / "bundle", say)
    repository = out / "model_repository"
    say("writing the model repository")
    write_repository(bundle, repository)
    shots = list(demo_shots())
    say("starting Triton")
    with EmbeddedServer(repository) as server:
        server.wait_ready()
        with open_tryon(server.addresses.grpc, loop=loop) as tryon:
            results = [_shoot(tryon, shot, steps, out, say) for shot in shots]
            transport = tryon.loop.name
        version = server.version
    say("comparing with the in-process executor")
    with open_tryon(bundle) as tryon:
        again = tryon(shots[0].photo, shots[0].ornament, shots[0].box, steps=steps)
        difference = float(np.abs(again.latents - results[0].latents).max())
        difference = max(difference, float(np.abs(again.masks[-1] - results[0].masks[-1]).max()))
        scores = _evaluation(tryon, out, bundle, triplets, say)
    sheet = out / "contact_sheet.png"
    save_png(sheet, _sheet(shots, results, loop))
    report = {
        "images": [str(out / f"{shot.name}.png") for shot in shots],
        "transport": transport,
        "loop": loop,
        "server_version": version,
        **{key: scores[key] for key in ("mask_iou", "box_iou", "psnr_loop", "psnr_no_loop")},
        "max_abs_diff_vs_in_process": difference,
        "seconds": round(time.perf_counter() - started, 2),
    }
    (out / "result.json").write_text(json.dumps(report, indent=2) + "\n")
    return sheet


def prepared_bundle(path: Path, say: Say) -> Path:
    """The demo checkpoint's bundle at `path`, for fast modes too; exported unless a whole one of it is there."""
    try:
        manifest = Bundle.open(path).manifest
        if manifest.checkpoint_sha256 == checkpoint_hash(CHECKPOINT) and has_deep(manifest):
            say(f"bundle {path} is there already")
            return path
    except BundleError:
        pass
    export_bundle(CHECKPOINT, path, deep_reuse=True, force=True, progress=say)
    return path


def demo_shots() -> Iterator[Shot]:
    """A real portrait with a necklace and an earring; a rendered wrist with a bracelet; a hand with a ring."""
    astronaut = np.asarray(photograph("astronaut.png").convert("RGB"))
    for name, title, box, kind, seed in (
        ("necklace", "Necklace on a photograph", ASTRONAUT_NECKLACE_BOX, "necklace", 41),
        ("earring", "Earring on the same photograph", ASTRONAUT_EARRING_BOX, "earring", 42),
    ):
        yield Shot(name, title, astronaut, _ornament(kind, seed), Box(*box))  # type: ignore[arg-type]
    for name, title, kind, seed in (
        ("bracelet", "Bracelet on a rendered wrist", "bracelet", 43),
        ("ring", "Ring on a rendered hand", "ring", 44),
    ):
        scene = render_scene(kind, seed)  # type: ignore[arg-type]
        yield Shot(name, title, scene.photo, scene.ornament, Box(*scene.box))


def _ornament(kind: Kind, seed: int) -> Pixels:
    return render_triplet(20_000_000 + seed, kind, 256).ornament


def _shoot(tryon: TryOn, shot: Shot, steps: int | None, out: Path, say: Say) -> Result:
    result = tryon(shot.photo, shot.ornament, shot.box, steps=steps)
    say(f"{shot.title.lower()}: {result.timings['total']:.1f} s over {tryon.loop.name}")
    save_png(out / f"{shot.name}.png", np.asarray(result.image))
    save_png(out / f"{shot.name}_mask.png", np.asarray(result.mask))
    save_png(out / f"{shot.name}_strip.png", mask_strip(shot.photo, result))
    return result


def _evaluation(tryon: TryOn, out: Path, bundle: Path, triplets: int, say: Say) -> dict[str, object]:
    """Scores on held-out triplets, kept with the identity of the bundle that they belong to."""
    path = out / "evaluation.json"
    identity = identity_of((bundle / MANIFEST_NAME).read_bytes())
    if path.exists():
        kept: dict[str, object] = json.loads(path.read_text())
        if kept.get("bundle") == identity and kept.get("triplets") == triplets:
            return kept
    scores = []
    for example in evaluate(tryon, triplets):
        scores.append(example.score)
        if len(scores) % 16 == 0:
            say(f"evaluating on held-out triplets: {len(scores)} of {triplets}")
    report = {"bundle": identity, **summary(scores)}
    path.write_text(json.dumps(report, indent=2) + "\n")
    return report


def _sheet(shots: list[Shot], results: list[Result], loop: Where) -> Pixels:
    rows = []
    for shot, result in zip(shots, results, strict=True):
        mask = np.repeat(np.asarray(result.mask)[..., None], 3, axis=2)
        rows.append(
            Row(
                shot.title,
                [
                    ("photo and box", outlined(shot.photo, shot.box)),
                    ("ornament", shot.ornament),
                    ("result", np.asarray(result.image)),
                    ("closer", _closer(np.asarray(result.image), shot.box)),
                    ("predicted mask", _closer(mask, shot.box)),
                ],
            )
        )
    where = "the loop inside the server" if loop == "server" else "driven step by step over gRPC"
    return contact_sheet("parure", f"served by Triton, {where}", rows)


def _closer(picture: Pixels, box: Box) -> Pixels:
    """The surroundings of the box: a square of twice its longer side, as far as the picture goes."""
    reach = max(box.width, box.height)
    x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
    top, left = max(0, round(y - reach)), max(0, round(x - reach))
    return picture[top : round(y + reach), left : round(x + reach)]
