"""Server loop and client loop against the in-process loop: seconds, bytes on the wire, and batches that form.

`python -m parure_bench.topologies`. All ways take turns in one run, on one machine, so that their ratios mean
something even where other work disturbs it; the server is idle while the process computes, and the other way round.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import parure
from parure.locality import client_loop_cost
from parure.tryon import Result, TryOn
from parure_bench.environment import environment
from parure_bench.serve.counters import read_counters
from parure_export.demo.showcase import Shot, demo_shots, prepared_bundle
from parure_triton.repository import write_repository
from parure_triton.server import Addresses, EmbeddedServer

SERVER = ("server loop, grpc", "server loop, http")
CLIENT = ("client loop, grpc", "client loop, http")
SHARED = ("client loop, grpc, shared memory", "client loop, http, shared memory")
DEMO_TARGETS = {"server loop": 1.10, "client loop with shared memory": 1.25}  # seconds / in-process
BATCH_TARGET = 4  # mean U-Net batch of 8 pictures at once
SHARED_RUNS = 5
WIRE_TARGET = 1.5  # bytes of a server-loop request / (inputs as files + picture as PNG)


@dataclass(frozen=True)
class Way:
    """One way to run the loop: `seconds` of every picture after the warm-up, and of the parts of the median one."""

    name: str
    seconds: list[float]
    parts: dict[str, float]
    sent: int
    received: int
    ratio: float


@click.command()
@click.option("--work", default="out/topologies", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Another bundle than the demo's.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
def main(work: Path, results: Path, bundle: Path | None, rounds: int, steps: int | None) -> None:
    """Compare server loop and client loop with the in-process loop; writes topologies.json."""
    bundle = bundle or prepared_bundle(work / "bundle", lambda text: click.echo(text, err=True))
    write_repository(bundle, work / "models")
    shot = next(demo_shots())
    with EmbeddedServer(work / "models", client_shared_memory=True) as server:
        server.wait_ready()
        with opened(bundle, server.addresses) as tryons:
            taken = measure(tryons, shot, rounds, steps)
            cost = client_loop_cost(next(iter(tryons.values())).manifest, steps)
            together = [shared_batches(server.addresses, tryons[SERVER[0]], shot) for _ in range(SHARED_RUNS)]
    ways = [way(name, pictures, taken["in-process"]) for name, pictures in taken.items()]
    found = {
        "server loop": next(w.ratio for w in ways if w.name == SERVER[0]),
        "client loop with shared memory": min(w.ratio for w in ways if w.name in SHARED),
    }
    report = {
        "command": f"python -m parure_bench.topologies --rounds {rounds}" + (f" --steps {steps}" if steps else ""),
        "environment": environment().model_dump(mode="json"),
        "picture": {"shot": shot.name, "steps": cost.steps, "tensor_bytes_at_most": asdict(cost)},
        "ways": [asdict(w) for w in ways],
        "found": {name: {"ratio": ratio, "target_at_demo_size": DEMO_TARGETS[name]} for name, ratio in found.items()},
        "wire": wire_ratio(shot, taken[SERVER[0]][0]) | {"target": WIRE_TARGET},
        "eight_pictures_at_once": {"runs": together, "mean_unet_batch_target": BATCH_TARGET},
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "topologies.json").write_text(json.dumps(report, indent=2) + "\n")
    show(ways)


@contextmanager
def opened(bundle: Path, at: Addresses) -> Iterator[dict[str, TryOn]]:
    """Every way to run the loop, by name."""
    openers: dict[str, Callable[[], TryOn]] = {
        "in-process": lambda: parure.open(bundle),
        SERVER[0]: lambda: parure.open(at.grpc, loop="server"),
        SERVER[1]: lambda: parure.open(at.http, loop="server"),
        CLIENT[0]: lambda: parure.open(at.grpc, loop="client"),
        CLIENT[1]: lambda: parure.open(at.http, loop="client"),
        SHARED[0]: lambda: parure.open(at.grpc, shared_memory=True),
        SHARED[1]: lambda: parure.open(at.http, shared_memory=True),
    }
    with ExitStack() as stack:
        yield {name: stack.enter_context(opener()) for name, opener in openers.items()}


def measure(tryons: Mapping[str, TryOn], shot: Shot, rounds: int, steps: int | None) -> dict[str, list[Result]]:
    """`rounds` pictures each, in turn, after one that warms up and keeps the ornament; all must be equal."""
    taken: dict[str, list[Result]] = {name: [] for name in tryons}
    for turn in range(rounds + 1):
        for name, tryon in tryons.items():
            result = tryon(shot.photo, shot.ornament, shot.box, steps=steps)
            if turn:
                taken[name].append(result)
    first = taken["in-process"][0]
    for name, results in taken.items():
        if not all(np.array_equal(result.latents, first.latents) for result in results):
            raise SystemExit(f"{name} computed another picture than the in-process loop")
    return taken


def shared_batches(at: Addresses, tryon: TryOn, shot: Shot) -> dict[str, float]:
    """Eight pictures of 20 steps at once: the mean U-Net batch by Triton's own count, and the seconds for all."""
    before, since = read_counters(at.metrics), time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: tryon(shot.photo, shot.ornament, shot.box, steps=20, seed=seed), range(8)))
    counted = (read_counters(at.metrics) - before).figures()
    return {"mean_unet_batch": round(counted["mean_unet_batch"], 2), "seconds": round(time.perf_counter() - since, 2)}


def wire_ratio(shot: Shot, result: Result) -> dict[str, float]:
    """What one picture costs on the wire, against its inputs and its output as PNG files."""
    files = sum(len(png(Image.fromarray(pixels))) for pixels in (shot.photo, shot.ornament)) + len(png(result.image))
    return {"bytes": result.wire.total, "as_files": files, "ratio": round(result.wire.total / files, 3)}


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def way(name: str, results: list[Result], reference: list[Result]) -> Way:
    """The ratio is the median of the rounds' ratios."""
    seconds = [result.timings["total"] for result in results]
    ratios = [r.timings["total"] / base.timings["total"] for r, base in zip(results, reference, strict=True)]
    middle = sorted(results, key=lambda result: result.timings["total"])[len(results) // 2]
    return Way(
        name,
        [round(s, 4) for s in seconds],
        {part: round(s, 4) for part, s in middle.timings.items()},
        middle.wire.sent,
        middle.wire.received,
        round(statistics.median(ratios), 3),
    )


def show(ways: list[Way]) -> None:
    table = Table("way", "median s", "ratio", "sent", "received", "unet s", "reference_net s")
    for w in ways:
        middle = statistics.median(w.seconds)
        parts = [f"{w.parts[part]:.3f}" for part in ("unet", "reference_net")]
        table.add_row(w.name, f"{middle:.3f}", f"{w.ratio:.3f}", f"{w.sent:,}", f"{w.received:,}", *parts)
    Console().print(table)


if __name__ == "__main__":
    main()
