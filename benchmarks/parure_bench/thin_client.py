"""What the runtime costs a client: `TritonExecutor` against a raw gRPC stub, at concurrency 1, 8 and 32.

`python -m parure_bench.thin_client`. Both make the same call of the same component, in turns in one run. The raw stub
sends a message that was serialized before, and looks at nothing that comes back: less than any client can do.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import grpc  # type: ignore[import-untyped]
import numpy as np
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]
from tritonclient.utils import np_to_triton_dtype  # type: ignore[import-untyped]

from parure.executor import Arrays
from parure.triton import TritonExecutor, wire_shape
from parure_bench.environment import environment
from parure_export.demo.showcase import prepared_bundle
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

CONCURRENCY = (1, 8, 32)
TARGET = 1.05
_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Load:
    """Calls per second of both, by round; `ratio`: the median of the rounds' raw / runtime, so seconds per call."""

    component: str
    concurrency: int
    raw: list[float]
    runtime: list[float]
    ratio: float


@click.command()
@click.option("--work", default="out/thin-client", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--component", default="unet", show_default=True)
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=4.0, show_default=True, help="Of each of the two, in each round.")
def main(work: Path, results: Path, component: str, rounds: int, seconds: float) -> None:
    """Measure both clients on the demo bundle; writes thin-client.json."""
    bundle = prepared_bundle(work / "bundle", lambda text: click.echo(text, err=True))
    write_repository(bundle, work / "models", threads=1)
    with EmbeddedServer(work / "models") as server:
        server.wait_ready()
        loads = [measure(server.addresses.grpc, component, many, rounds, seconds) for many in CONCURRENCY]
    report = {
        "command": f"python -m parure_bench.thin_client --component {component} --rounds {rounds} --seconds {seconds:g}",
        "environment": environment().model_dump(mode="json"),
        "target": TARGET,
        "loads": [asdict(load) for load in loads],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "thin-client.json").write_text(json.dumps(report, indent=2) + "\n")
    show(loads)


def measure(url: str, component: str, concurrency: int, rounds: int, seconds: float) -> Load:
    with TritonExecutor(url, deadline=60) as executor, grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
        spec = executor.manifest.component(component)
        inputs = {t.name: np.full((1, *t.shape), 0.5, t.dtype) for t in spec.inputs}
        shaped = {t.name: inputs[t.name].reshape(wire_shape(t, 1)) for t in spec.inputs}
        message, infer = serialized(component, shaped), channel.unary_unary(_INFER)
        clients: tuple[Callable[[], object], ...] = (
            lambda: infer(message, timeout=60),
            lambda: executor.run(component, inputs),
        )
        for client in clients:
            rate(client, concurrency, seconds / 4)
        raw, runtime = zip(
            *([rate(client, concurrency, seconds) for client in clients] for _ in range(rounds)), strict=True
        )
    ratio = statistics.median(one / other for one, other in zip(raw, runtime, strict=True))
    return Load(component, concurrency, list(raw), list(runtime), round(ratio, 4))


def serialized(component: str, inputs: Arrays) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=component)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        request.raw_input_contents.append(np.asarray(array).tobytes())
    return bytes(request.SerializeToString())


def rate(call: Callable[[], object], concurrency: int, seconds: float) -> float:
    """Calls per second of `concurrency` threads, each of which calls again and again."""
    counts = [0] * concurrency
    until = time.perf_counter() + seconds

    def work(place: int) -> None:
        while time.perf_counter() < until:
            call()
            counts[place] += 1

    since = time.perf_counter()
    threads = [threading.Thread(target=work, args=(place,)) for place in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(sum(counts) / (time.perf_counter() - since), 2)


def show(loads: list[Load]) -> None:
    table = Table("component", "concurrency", "raw stub, calls/s", "runtime, calls/s", "ratio", "target")
    for load in loads:
        rates = (f"{statistics.median(values):,.1f}" for values in (load.raw, load.runtime))
        table.add_row(load.component, str(load.concurrency), *rates, f"{load.ratio:.3f}", f"{TARGET:g}")
    Console().print(table)


if __name__ == "__main__":
    main()
