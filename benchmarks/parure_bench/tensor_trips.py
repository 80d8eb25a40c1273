"""One tensor to a server and back, by size: in messages, and in shared memory.

`python -m parure_bench.tensor_trips`. Where the two meet is what `SharedMemory.least` should be. The model does
nothing; Triton's own copies, between its process and the model's, are in both figures.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from parure.executor import Array
from parure.shared_tensors import SharedMemory, SharedTensors
from parure.triton_transport import open_transport
from parure_bench.environment import environment
from parure_export.demo.showcase import prepared_bundle
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

MODEL = "echo"
KIB = 1024
SD15_FEATURES = 23_101_440  # bytes of one reference picture's features in fp16
SIZES = (4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 1024 * KIB, 4096 * KIB, SD15_FEATURES)
CONFIG = """name: "echo"
backend: "python"
max_batch_size: 0
input { name: "given" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "returned" data_type: TYPE_FP32 dims: [ -1 ] }
instance_group { count: 1 kind: KIND_CPU }
"""


@dataclass(frozen=True)
class Trip:
    """Median milliseconds there and back. `chained`: the tensor is in a region already, as features are in the loop."""

    transport: str
    size: int
    message: float
    copied: float
    chained: float


@click.command()
@click.option("--work", default="out/client-loop", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--seconds", default=1.5, show_default=True, help="For each figure.")
def main(work: Path, results: Path, seconds: float) -> None:
    """Measure trips over gRPC and HTTP; writes tensor-trips.json."""
    bundle = prepared_bundle(work / "bundle", lambda text: click.echo(text, err=True))
    models = work / "models-trips"
    shutil.rmtree(models, ignore_errors=True)
    write_repository(bundle, models)
    (models / MODEL / "1").mkdir(parents=True)
    (models / MODEL / "config.pbtxt").write_text(CONFIG)
    shutil.copyfile(Path(__file__).with_name("echo_model.py"), models / MODEL / "1" / "model.py")
    with EmbeddedServer(models, client_shared_memory=True) as server:
        server.wait_ready()
        urls = (server.addresses.grpc, server.addresses.http)
        trips = [trip for url in urls for trip in measure(url, seconds)]
    report = {
        "command": f"python -m parure_bench.tensor_trips --seconds {seconds:g}",
        "environment": environment().model_dump(mode="json"),
        "trips": [asdict(trip) for trip in trips],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "tensor-trips.json").write_text(json.dumps(report, indent=2) + "\n")
    show(trips)


def measure(url: str, seconds: float) -> list[Trip]:
    transport = open_transport(url, 60)
    shared = SharedTensors(transport, url, 60, SharedMemory(least=1), first=SIZES[0])
    trips = []
    for size in SIZES:
        given = np.ones(size // 4, np.float32)

        def message(array: Array) -> Array:
            return transport.infer(MODEL, {"given": array})["returned"]

        def through_regions(array: Array) -> Array:
            return shared.infer(MODEL, {"given": array}, {"returned": array.nbytes})["returned"]

        placed = through_regions(given)
        figures = [median_ms(call, seconds, array) for call, array in
                   ((message, given), (through_regions, given), (through_regions, placed))]  # fmt: skip
        trips.append(Trip(transport.name, size, *figures))
    shared.close()
    transport.close()
    return trips


def median_ms(call: Callable[[Array], Array], seconds: float, array: Array) -> float:
    """Of as many calls as fit into `seconds`, after some that warm up."""
    for _ in range(3):
        call(array)
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while not taken or time.perf_counter() < until:
        since = time.perf_counter()
        reply = call(array)
        taken.append(time.perf_counter() - since)
        if not np.array_equal(reply, array):
            raise SystemExit("the model handed back another tensor than it was given")
        del reply
    return round(statistics.median(taken) * 1000, 3)


def show(trips: list[Trip]) -> None:
    table = Table("transport", "KiB", "message ms", "region, copied ms", "region, chained ms")
    for t in trips:
        figures = (f"{ms:.2f}" for ms in (t.message, t.copied, t.chained))
        table.add_row(t.transport, f"{t.size / KIB:,.0f}", *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
