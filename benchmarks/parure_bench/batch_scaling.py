"""Batches over sleep-bound servers: how they scale, what the runner costs, and what a killed server loses.

`python -m parure_bench.batch_scaling scale | cost | memory | affinity | kill`, each with `--help`.
"""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import click
import numpy as np
from PIL import Image

from parure.batch.batch import Plan, Summary, run_batch
from parure.batch.endpoint import Connection, Connector
from parure.batch.engine import asked
from parure.batch.jobs import Job, read_jobs
from parure.batch.keys import Reader
from parure.request import Asked, read_request
from parure.server_calls import open_calls
from parure.tryon_wire import call_tensors
from parure_bench.environment import environment
from parure_bench.sleeping_servers import counted, servers, sleeping_repository, urls, write_jobs, write_report

SCALE_TARGETS = {2: 1.9, 4: 3.7}
COST_TARGET = 2.0  # ms of CPU per job, beyond image coding
MEMORY_TARGET = 50.0  # MB more for a hundred times the jobs
AFFINITY_TARGET = 0.9
CODING = (  # decode, check, crop, encode, compose
    "parure.tryon.read_request", "parure.server_loop.call_tensors", "parure.server_loop.read_seen",
    "parure.tryon.compose", "parure.batch.engine._png", "parure.batch.page._figure",
)  # fmt: skip
DEADLINE = 60.0


@click.group()
@click.option("--work", default="out/batch", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--bundle", type=click.Path(path_type=Path), help="Another bundle than the demo's.")
@click.pass_context
def main(context: click.Context, work: Path, results: Path, bundle: Path | None) -> None:
    """Figures of `parure batch`; each command writes RESULTS/batch-NAME.json."""
    work.mkdir(parents=True, exist_ok=True)
    context.obj = (work, results, bundle)


def run(jobs: Path, out: Path, endpoints: tuple[str, ...], **options: Any) -> Summary:
    shutil.rmtree(out, ignore_errors=True)
    return run_batch(Plan(str(jobs), str(out), endpoints, quiet=True, **options))


@main.command()
@click.option("--jobs", default=240, show_default=True, type=click.IntRange(1))
@click.option("--endpoints", default="1,2,4", show_default=True)
@click.option("--step-seconds", default=0.3, show_default=True, help="Sleep of the U-Net and of the ReferenceNet.")
@click.pass_obj
def scale(given: tuple[Path, Path, Path | None], jobs: int, endpoints: str, step_seconds: float) -> None:
    """The same batch over more and more endpoints."""
    work, results, bundle = given
    repository = sleeping_repository(work, bundle, {"unet": step_seconds, "reference_net": step_seconds})
    file = write_jobs(work / "jobs", jobs)
    found: list[dict[str, Any]] = []
    for count in map(int, endpoints.split(",")):
        with servers(repository, count) as running:
            run(write_jobs(work / "warm", 2 * count), work / "out", urls(running))
            summary = run(file, work / "out", urls(running))
        shares = [round(done / jobs, 4) for done in summary.endpoints.values()]
        speed = jobs / summary.seconds / (found[0]["rate"] if found else jobs / summary.seconds)
        found.append(
            {"endpoints": count, "seconds": summary.seconds, "rate": round(jobs / summary.seconds, 4), "ok": summary.ok}
            | {"speedup": round(speed, 3), "target": SCALE_TARGETS.get(count), "shares": shares}
        )
    command = f"python -m parure_bench.batch_scaling scale --jobs {jobs} --endpoints {endpoints}"
    command += f" --step-seconds {step_seconds:g}"
    write_report(
        results,
        "batch-scale.json",
        {"command": command, "environment": environment().model_dump(mode="json"), "runs": found},
    )


@main.command()
@click.option("--jobs", default=200, show_default=True, type=click.IntRange(8))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--scratch", default="/dev/shm/parure-batch", show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def cost(given: tuple[Path, Path, Path | None], jobs: int, rounds: int, scratch: Path) -> None:
    """CPU of the runner's process per job: of coding images, of the bare call, of the disk (what it costs beyond SCRATCH,
    which is in memory), and what is left."""
    work, results, bundle = given
    repository = sleeping_repository(work, bundle, {"unet": 0.05})
    found = []
    with servers(repository, 1) as running:
        run(warm := write_jobs(work / "warm", 20), work / "out", urls(running))
        for _ in range(rounds):
            total, coded = cpu_per_job(work / "jobs", jobs, work / "out", urls(running))
            without_disk = np.subtract(*cpu_per_job(work / "jobs", jobs, scratch, urls(running)))
            called = 1000 * cpu_of_calls(urls(running)[0], warm, jobs) / jobs
            found.append({"ms_of_cpu": total, "image_coding": coded, "call": called})
            found[-1] |= {"disk": total - coded - without_disk, "own": without_disk - called}
        shutil.rmtree(scratch, ignore_errors=True)
    report = {
        "command": f"python -m parure_bench.batch_scaling cost --jobs {jobs} --rounds {rounds}",
        "environment": environment().model_dump(mode="json"),
        "per_job": {name: round(statistics.median(each[name] for each in found), 3) for name in found[0]},
        "rounds": [{name: round(value, 3) for name, value in each.items()} for each in found],
        "target": COST_TARGET,
    }
    write_report(results, "batch-cost.json", report)


def cpu_per_job(jobs: Path, count: int, out: Path, endpoints: tuple[str, ...]) -> tuple[float, float]:
    """Milliseconds of CPU, and those of them that coded images; of two runs, so that what a run costs but once is out."""
    spent = []
    for number in (count // 4, count):
        file = write_jobs(jobs, number)
        with cpu_inside(CODING) as coding:
            before = time.process_time()
            summary = run(file, out, endpoints)
            spent.append((time.process_time() - before, coding()))
        assert summary.ok, summary
    total, coded = (1000 * (more - less) / (count - count // 4) for less, more in zip(*spent, strict=True))
    return total, coded


def cpu_of_calls(url: str, jobs: Path, count: int) -> float:
    """CPU seconds of nothing but asking for the first of `jobs`, as often and as many at once as a batch does."""
    connection, calls = Connector(DEADLINE)(url), open_calls(url, DEADLINE)
    job = next(job for job in read_jobs(str(jobs)) if isinstance(job, Job))
    request = read_request(Asked(**asked(job, Reader().read(job))), connection.manifest)
    inputs = call_tensors(request, None, DEADLINE, connection.manifest.geometry)

    def ask(number: int) -> None:
        for _ in calls.start(inputs, DEADLINE, str(number), None):
            pass

    before = time.process_time()
    with ThreadPoolExecutor(connection.places) as pool:
        list(pool.map(ask, range(count)))
    spent = time.process_time() - before
    calls.close()
    connection.tryon.close()
    return spent


@contextmanager
def cpu_inside(functions: Sequence[str]) -> Iterator[Callable[[], float]]:
    """Adds up the CPU seconds that threads spend inside of `functions`, where these are looked up."""
    seconds, inside, lock = 0.0, threading.local(), threading.Lock()

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal seconds
            if getattr(inside, "it", False):
                return function(*arguments, **named)
            inside.it, since = True, time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                inside.it = False
                with lock:
                    seconds += time.thread_time() - since

        return call

    patches = [patch(name, timed(resolve_name(name))) for name in functions]
    for each in patches:
        each.start()
    try:
        yield lambda: seconds
    finally:
        for each in patches:
            each.stop()


@main.command()
@click.option("--jobs", default="1000,100000", show_default=True)
@click.option("--scratch", default="/dev/shm/parure-batch", show_default=True, type=click.Path(path_type=Path))
@click.pass_obj
def memory(given: tuple[Path, Path, Path | None], jobs: str, scratch: Path) -> None:
    """Peak memory of runs of some sizes, each in a process of its own, over endpoints that answer at once."""
    _, results, _ = given
    peaks = []
    for count in map(int, jobs.split(",")):
        command = [sys.executable, "-m", "parure_bench.batch_scaling", "one-memory", str(count), str(scratch)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        peaks.append({"jobs": count, "peak_mb": float(done.stdout.split()[-1])})
        shutil.rmtree(scratch, ignore_errors=True)
    report = {
        "command": f"python -m parure_bench.batch_scaling memory --jobs {jobs}",
        "environment": environment().model_dump(mode="json"),
        "runs": peaks,
        "more_mb": round(peaks[-1]["peak_mb"] - peaks[0]["peak_mb"], 1),
        "target_more_mb": MEMORY_TARGET,
    }
    write_report(results, "batch-memory.json", report)


@main.command("one-memory", hidden=True)
@click.argument("jobs", type=int)
@click.argument("scratch", type=click.Path(path_type=Path))
def one_memory(jobs: int, scratch: Path) -> None:
    """One run; prints its peak in MB."""
    import resource

    loop = SimpleNamespace(default_steps=2, default_solver="ddim", default_guidance=1.0)
    tiny = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    result = SimpleNamespace(image=tiny, mask=tiny.convert("L"), timings={"total": 0.001}, masks=np.zeros((2, 1, 1)))

    class Answers:
        def __call__(self, *given: Any, **named: Any) -> Any:
            return result

        def close(self) -> None:
            pass

    def connect(url: str) -> Connection:
        return Connection(Answers(), SimpleNamespace(loop=loop), "0" * 64, 4)  # type: ignore[arg-type]

    file = write_jobs(scratch / "jobs", jobs, ornaments=100, side=32)
    plan = Plan(str(file), str(scratch / "out"), ("grpc://one:1", "grpc://two:1"), quiet=True)
    summary = run_batch(plan, connect=connect, check=lambda url: None, live=lambda url: True)
    assert summary.ok and summary.done == jobs, summary
    click.echo(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@main.command()
@click.option("--ornaments", default=100, show_default=True, type=click.IntRange(1))
@click.option("--repeats", default=100, show_default=True, type=click.IntRange(1))
@click.option("--cached", default=8, show_default=True, type=click.IntRange(1), help="Ornaments that a server keeps.")
@click.pass_obj
def affinity(given: tuple[Path, Path, Path | None], ornaments: int, repeats: int, cached: int) -> None:
    """Cache hits of two endpoints where ornaments take turns, by the servers' own count; and without looking ahead."""
    work, results, bundle = given
    repository = sleeping_repository(work, bundle, {}, cached=cached)
    found = {}
    for name, window in (("affinity", None), ("rows as they come", 1)):
        count = ornaments * repeats if window is None else min(ornaments * repeats, 4 * ornaments)
        file = write_jobs(work / "jobs", count, ornaments=ornaments, steps=1, side=128)
        with servers(repository, 2) as running:
            summary = run(file, work / "out", urls(running), **({} if window is None else {"window": window}))
            hits, misses = (counted(running, "parure_ornament_cache_total", result=r) for r in ("hit", "miss"))
        found[name] = {"jobs": count, "hits": hits, "misses": misses, "share": round(hits / (hits + misses), 4)}
        found[name] |= {"ok": summary.ok, "seconds": summary.seconds}
    command = f"python -m parure_bench.batch_scaling affinity --ornaments {ornaments} --repeats {repeats}"
    report = {
        "command": f"{command} --cached {cached}",
        "environment": environment().model_dump(mode="json"),
        "target": AFFINITY_TARGET,
        "runs": found,
    }
    write_report(results, "batch-affinity.json", report)


@main.command()
@click.option("--times", default=5, show_default=True, type=click.IntRange(1))
@click.option("--jobs", default=100, show_default=True, type=click.IntRange(1))
@click.pass_obj
def kill(given: tuple[Path, Path, Path | None], times: int, jobs: int) -> None:
    """One of two servers killed at a random moment of a batch."""
    work, results, bundle = given
    repository = sleeping_repository(work, bundle, {"unet": 0.1})
    file = write_jobs(work / "jobs", jobs)
    runs = []
    for turn in range(times):
        with servers(repository, 2) as running:
            ledger, moment = work / "out" / "ledger.jsonl", random.Random(turn).randrange(1, jobs)
            shutil.rmtree(work / "out", ignore_errors=True)
            threading.Thread(target=kill_after, args=(running[0].kill, ledger, moment), daemon=True).start()
            summary = run_batch(Plan(str(file), str(work / "out"), urls(running), quiet=True))
        runs.append({"after": moment, "done": summary.done, "failed": summary.failed, "seconds": summary.seconds})
    command = f"python -m parure_bench.batch_scaling kill --times {times} --jobs {jobs}"
    report = {
        "command": command,
        "environment": environment().model_dump(mode="json"),
        "failed": sum(r["failed"] for r in runs),
        "runs": runs,
    }
    write_report(results, "batch-kill.json", report | {"target_failed": 0})


def kill_after(kill: Callable[[], None], ledger: Path, jobs: int) -> None:
    while not ledger.exists() or ledger.read_bytes().count(b"\n") < jobs:
        time.sleep(0.02)
    kill()


if __name__ == "__main__":
    main()
