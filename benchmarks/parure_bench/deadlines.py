"""How long after its deadline a call ends, when the server is stopped, and when only the model is slow.

`python -m parure_bench.deadlines`. Calls with the tensors of the demo's U-Net, over gRPC and HTTP, with shared memory and without.
"""

from __future__ import annotations

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from parure.errors import DeadlineExceeded
from parure.executor import Arrays
from parure.shared_tensors import SharedMemory
from parure.triton import TritonExecutor
from parure_bench.environment import environment
from parure_bench.stopped import stopped
from parure_export.demo.showcase import prepared_bundle
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

PROMISE = 0.2  # seconds beyond the deadline
MODEL = "unet"


@dataclass(frozen=True)
class Call:
    """Where calls go, and how."""

    url: str
    deadline: float
    shared: SharedMemory | None


@dataclass(frozen=True)
class Overrun:
    """Seconds between the deadline and the end of each call, sorted."""

    event: str
    way: str
    deadline: float
    overruns: list[float]

    @property
    def kept(self) -> bool:
        return self.overruns[-1] <= PROMISE


@click.command()
@click.option("--work", default="out/client-loop", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--calls", default=15, show_default=True, type=click.IntRange(1))
@click.option("--deadline", default=0.5, show_default=True)
def main(work: Path, results: Path, calls: int, deadline: float) -> None:
    """Measure how late calls end; writes deadlines.json."""
    bundle = prepared_bundle(work / "bundle", lambda text: click.echo(text, err=True))
    write_repository(bundle, work / "models")
    shutil.copyfile(slow_model(), work / "models" / MODEL / "1" / "model.py")
    overruns = []
    with EmbeddedServer(work / "models", client_shared_memory=True) as server:
        server.wait_ready()
        for scheme in ("grpc", "http"):
            for shared in (None, SharedMemory()):
                way = scheme + (", shared memory" if shared else "")
                call = Call(getattr(server.addresses, scheme), deadline, shared)
                for event, pid in (("server stopped (SIGSTOP)", server.pid), ("slow model", None)):
                    overruns.append(Overrun(event, way, deadline, measure(call, calls, pid)))
    report = {
        "command": f"python -m parure_bench.deadlines --calls {calls} --deadline {deadline:g}",
        "environment": environment().model_dump(mode="json"),
        "promise_seconds": PROMISE,
        "overruns": [asdict(o) | {"kept": o.kept} for o in overruns],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "deadlines.json").write_text(json.dumps(report, indent=2) + "\n")
    show(overruns)


def measure(call: Call, calls: int, pid: int | None) -> list[float]:
    """Overruns of `calls` calls to the slow model, or while the process `pid` is stopped."""
    with (
        TritonExecutor(call.url, deadline=60) as patient,
        TritonExecutor(call.url, deadline=call.deadline, shared_memory=call.shared) as hasty,
    ):
        quick = inputs_of(patient)
        patient.run(MODEL, quick)
        slow = {name: array if pid else array + 1 for name, array in quick.items()}
        with stopped(pid) if pid else nullcontext():
            overruns = [overrun(hasty, slow, call.deadline) for _ in range(calls)]
        patient.run(MODEL, quick)
    return sorted(overruns)


def overrun(executor: TritonExecutor, inputs: Arrays, deadline: float) -> float:
    since = time.perf_counter()
    try:
        executor.run(MODEL, inputs)
    except DeadlineExceeded:
        return round(time.perf_counter() - since - deadline, 4)
    raise SystemExit(f"a call to {executor.url} was answered by a process that is stopped")


def inputs_of(executor: TritonExecutor) -> Arrays:
    """One sample of zeros."""
    component = executor.manifest.component(MODEL)
    return {t.name: np.zeros((1, *t.shape), t.dtype) for t in component.inputs}


def slow_model() -> Path:
    return Path(__file__).with_name("slow_model.py")


def show(overruns: list[Overrun]) -> None:
    table = Table("event", "way", "calls", "median ms late", "latest ms", f"<= {PROMISE * 1000:.0f} ms")
    for o in overruns:
        middle, last = (f"{o.overruns[i] * 1000:.1f}" for i in (len(o.overruns) // 2, -1))
        table.add_row(o.event, o.way, str(len(o.overruns)), middle, last, "yes" if o.kept else "[red]NO[/]")
    Console().print(table)


if __name__ == "__main__":
    main()
