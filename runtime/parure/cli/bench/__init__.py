"""`parure bench`: measurements, each in a module of its own; they need the extra `bench`."""

from __future__ import annotations

import click

from parure.cli import LazyGroup

COMMANDS = {
    "components": ("parure.cli.bench.components", "Every component alone, by batch size and backend."),
    "loop": ("parure.cli.bench.loop", "The whole picture, and its peers on the same weights."),
    "quality": ("parure.cli.bench.quality", "Fast modes: what they save, and what they cost."),
    "roofline": ("parure.cli.bench.roofline", "The least time that a device can take, from the graphs."),
    "serve": ("parure.cli.bench.serve", "A server under load: latency by concurrency and by arrival rate."),
    "perf-analyzer": ("parure.cli.bench.perf_analyzer", "NVIDIA's perf_analyzer beside our own load."),
    "report": ("parure.cli.bench.report", "Records -> one page of charts."),
    "compare": ("parure.cli.bench.compare", "Two records: what changed significantly."),
}


@click.group("bench", cls=LazyGroup, modules=COMMANDS)
def command() -> None:
    """Measure a bundle, its peers and their limits; every measurement writes a record (JSON)."""
