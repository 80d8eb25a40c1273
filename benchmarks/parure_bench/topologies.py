"""Server loop and client loop against the in-process loop: seconds, bytes on the wire, and batches that form.

`python -m parure_bench.topologies`. All ways take turns in one run, on one machine, so that their ratios mean
something even where other work disturbs it; the server is idle while the process computes, and the other way round.
With `--apart` it is not even there: for a bundle that the machine's memory does not hold twice.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from parure.bundle import Bundle
from parure.locality import client_loop_cost
from parure.tryon import Result, TryOn
from parure_bench.environment import environment
from parure_bench.own_process import in_own_process
from parure_bench.serve.counters import read_counters
from parure_export.demo.showcase import Shot, demo_shots, prepared_bundle
from parure_triton.repository import write_repository
from parure_triton.server import Addresses, EmbeddedServer

LOCAL = "in-process"
AHEAD = "in-process, working ahead"
SERVER = ("server loop, grpc", "server loop, http")
CLIENT = ("client loop, grpc", "client loop, http")
SHARED = ("client loop, grpc, shared memory", "client loop, http, shared memory")
TARGETS = {  # seconds / in-process
    "demo": {"server loop": 1.10, "client loop with shared memory": 1.25},
    "sd15": {"server loop": 1.02, "client loop with shared memory": 1.05},
}
SD15_LATENT_SIZE = 64
DEADLINE = 600.0  # seconds, for one request
BATCH_TARGET = 4  # mean U-Net batch of 8 pictures at once
REMOTE = (*SERVER, *CLIENT, *SHARED)
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


Openers = Mapping[str, Callable[[], TryOn]]
Taken = dict[str, list[Result]]


@click.command()
@click.option("--work", default="out/topologies", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Another bundle than the demo's.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
@click.option(
    "--way",
    "chosen",
    multiple=True,
    type=click.Choice(REMOTE),
    help="Only this one, besides server loop over gRPC [default: all].",
)
@click.option("--apart", is_flag=True, help="Never hold the process's components and the server's at once.")
def main(
    work: Path, results: Path, bundle: Path | None, rounds: int, steps: int | None, chosen: tuple[str, ...], apart: bool
) -> None:
    """Compare server loop and client loop with the in-process loop; writes topologies.json, or topologies-sd15.json."""
    bundle = bundle or prepared_bundle(work / "bundle", lambda text: click.echo(text, err=True))
    manifest = Bundle.open(bundle).manifest
    size = "sd15" if manifest.geometry.latent_size >= SD15_LATENT_SIZE else "demo"
    write_repository(bundle, work / size / "models")
    shot = next(demo_shots())
    remotes = tuple(dict.fromkeys((SERVER[0], *chosen))) if chosen else REMOTE
    measure = taken_apart if apart else taken_together
    taken, together = measure(bundle, work / size / "models", remotes, shot, rounds, steps)
    ways = [way(name, pictures, taken[LOCAL]) for name, pictures in taken.items()]
    cost = client_loop_cost(manifest, steps)
    report = {
        "command": " ".join(["python -m parure_bench.topologies", *(shlex.quote(word) for word in sys.argv[1:])]),
        "environment": environment().model_dump(mode="json"),
        "picture": {"shot": shot.name, "steps": cost.steps, "tensor_bytes_at_most": asdict(cost)},
        "ways": [asdict(w) for w in ways],
        "found": {name: {"ratio": found, "target": TARGETS[size][name]} for name, found in ratios(ways).items()},
        "wire": wire_ratio(shot, taken[SERVER[0]][0]) | {"target": WIRE_TARGET},
    }
    if together:
        report["eight_pictures_at_once"] = {"runs": together, "mean_unet_batch_target": BATCH_TARGET}
    results.mkdir(parents=True, exist_ok=True)
    name = "topologies.json" if size == "demo" else f"topologies-{size}.json"
    (results / name).write_text(json.dumps(report, indent=2) + "\n")
    show(ways)


def taken_together(
    bundle: Path, models: Path, chosen: Sequence[str], shot: Shot, rounds: int, steps: int | None
) -> tuple[Taken, list[dict[str, float]]]:
    """`rounds` pictures of every way, in turn, after one that warms up and keeps the ornament; then eight at once."""
    taken: Taken = {}
    with served(models) as at, opened(in_process(bundle) | remote(at, chosen)) as tryons:
        for turn in range(rounds + 1):
            pictures(tryons, shot, steps, taken if turn else {})
        eight = [shared_batches(at, tryons[SERVER[0]], shot) for _ in range(SHARED_RUNS)]
    return checked(taken), eight


def taken_apart(
    bundle: Path, models: Path, chosen: Sequence[str], shot: Shot, rounds: int, steps: int | None
) -> tuple[Taken, list[dict[str, float]]]:
    """As `taken_together`, but process and server are opened, warmed up with a step, and ended again in every round."""
    taken: Taken = {}
    for _ in range(rounds):
        taken.setdefault(LOCAL, []).append(in_own_process(taken_alone, bundle, shot, steps))
        with served(models) as at, opened(remote(at, chosen)) as tryons:
            pictures(tryons, shot, 1, {})
            pictures(tryons, shot, steps, taken)
    return checked(taken), []


def taken_alone(bundle: Path, shot: Shot, steps: int | None) -> Result:
    """A picture in this process, after a step that warms up."""
    with parure.open(bundle) as tryon:
        tryon(shot.photo, shot.ornament, shot.box, steps=1)
        return tryon(shot.photo, shot.ornament, shot.box, steps=steps)


@contextmanager
def served(models: Path) -> Iterator[Addresses]:
    with EmbeddedServer(models, client_shared_memory=True) as server:
        server.wait_ready()
        yield server.addresses


def in_process(bundle: Path) -> dict[str, Callable[[], TryOn]]:
    return {LOCAL: lambda: parure.open(bundle), AHEAD: lambda: parure.open(bundle, work_ahead=True)}


def remote(at: Addresses, chosen: Sequence[str]) -> dict[str, Callable[[], TryOn]]:
    """The `chosen` ways to use a server, by name."""
    openers: dict[str, Callable[[], TryOn]] = {
        SERVER[0]: lambda: parure.open(at.grpc, loop="server", deadline=DEADLINE),
        SERVER[1]: lambda: parure.open(at.http, loop="server", deadline=DEADLINE),
        CLIENT[0]: lambda: parure.open(at.grpc, loop="client", deadline=DEADLINE),
        CLIENT[1]: lambda: parure.open(at.http, loop="client", deadline=DEADLINE),
        SHARED[0]: lambda: parure.open(at.grpc, shared_memory=True, deadline=DEADLINE),
        SHARED[1]: lambda: parure.open(at.http, shared_memory=True, deadline=DEADLINE),
    }
    return {name: openers[name] for name in chosen}


@contextmanager
def opened(openers: Openers) -> Iterator[dict[str, TryOn]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(opener()) for name, opener in openers.items()}


def pictures(tryons: Mapping[str, TryOn], shot: Shot, steps: int | None, into: Taken) -> None:
    for name, tryon in tryons.items():
        into.setdefault(name, []).append(tryon(shot.photo, shot.ornament, shot.box, steps=steps))


def checked(taken: Taken) -> Taken:
    """All ways computed one picture."""
    first = taken[LOCAL][0]
    for name, results in taken.items():
        if not all(np.array_equal(result.latents, first.latents) for result in results):
            raise SystemExit(f"{name} computed another picture than the in-process loop")
    return taken


def ratios(ways: Sequence[Way]) -> dict[str, float]:
    """What the targets are set for, where it was measured."""
    found = {"server loop": SERVER[:1], "client loop with shared memory": SHARED}
    seen = {name: [w.ratio for w in ways if w.name in names] for name, names in found.items()}
    return {name: min(values) for name, values in seen.items() if values}


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
