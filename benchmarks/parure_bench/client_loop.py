"""The client loop against the in-process loop: seconds and bytes on the wire for one picture of the demo model.

`python -m parure_bench.client_loop`. All ways take turns in one run, on one machine, so that their ratios mean
something even where other work disturbs it; the server is idle while the process computes, and the other way round.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import parure
from parure.locality import client_loop_cost
from parure.tryon import Result, TryOn
from parure_bench.fullsize import machine
from parure_export.demo.showcase import Shot, demo_shots, prepared_bundle
from parure_triton.repository import write_repository
from parure_triton.server import Addresses, EmbeddedServer

TARGET = 1.25  # client loop with shared memory / in-process
SHARED = ("grpc, shared memory", "http, shared memory")


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
@click.option("--work", default="out/client-loop", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Another bundle than the demo's.")
@click.option("--rounds", default=7, show_default=True, type=click.IntRange(1))
@click.option("--steps", type=int, help="Denoising steps [default: the bundle's].")
def main(work: Path, results: Path, bundle: Path | None, rounds: int, steps: int | None) -> None:
    """Compare the client loop over gRPC, HTTP and shared memory with the in-process loop; writes client-loop.json."""
    bundle = bundle or prepared_bundle(work / "bundle", lambda text: click.echo(text, err=True))
    write_repository(bundle, work / "models")
    shot = next(demo_shots())
    with EmbeddedServer(work / "models", client_shared_memory=True) as server:
        server.wait_ready()
        with opened(bundle, server.addresses) as tryons:
            taken = measure(tryons, shot, rounds, steps)
            cost = client_loop_cost(next(iter(tryons.values())).manifest, steps)
    ways = [way(name, pictures, taken["in-process"]) for name, pictures in taken.items()]
    shared = min(w.ratio for w in ways if w.name in SHARED)
    report = {
        "command": f"python -m parure_bench.client_loop --rounds {rounds}" + (f" --steps {steps}" if steps else ""),
        "machine": machine(),
        "picture": {"shot": shot.name, "steps": cost.steps, "tensor_bytes_at_most": asdict(cost)},
        "ways": [asdict(w) for w in ways],
        "target": {"shared_memory_ratio": TARGET, "found": shared, "kept": shared <= TARGET},
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "client-loop.json").write_text(json.dumps(report, indent=2) + "\n")
    show(ways)


@contextmanager
def opened(bundle: Path, at: Addresses) -> Iterator[dict[str, TryOn]]:
    """Every way to run the loop, by name."""
    openers: dict[str, Callable[[], TryOn]] = {
        "in-process": lambda: parure.open(bundle),
        "grpc": lambda: parure.open(at.grpc, loop="client"),
        "http": lambda: parure.open(at.http, loop="client"),
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
