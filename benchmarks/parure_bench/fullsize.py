"""The paper's real size on this machine: checkpoint -> fp16 bundle -> engines, timed, with peaks of memory and disk.

`python -m parure_bench.fullsize` (or `make fullsize`). Every step is a command of its own, as a user would type it;
its memory is that of its whole process tree, sampled.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

from parure_bench.environment import GB, environment

SAMPLE_SECONDS = 0.2
PARURE = str(Path(sys.executable).parent / "parure")


@dataclass(frozen=True)
class Figure:
    """One measured step; a budget of 0 means that none was set."""

    step: str
    command: str
    seconds: float
    peak_gb: float
    budget_seconds: float = 0
    budget_gb: float = 0

    @property
    def kept(self) -> bool:
        return (not self.budget_seconds or self.seconds <= self.budget_seconds) and (
            not self.budget_gb or self.peak_gb <= self.budget_gb
        )


@click.command()
@click.option("--work", default="out/fullsize", show_default=True, type=click.Path(path_type=Path))
@click.option("--results", default="benchmarks/results", show_default=True, type=click.Path(path_type=Path))
@click.option("--target", default="a100", show_default=True)
def main(work: Path, results: Path, target: str) -> None:
    """Measure export and engine builds at SD 1.5 size with random weights; writes RESULTS/fullsize.json."""
    checkpoint, bundle, cache = work / "checkpoint", work / "bundle", work / "cache"
    work.mkdir(parents=True, exist_ok=True)
    for stale in (bundle, cache, work / "unet"):
        shutil.rmtree(stale, ignore_errors=True)
    if not checkpoint.exists():
        measure("new checkpoint", [PARURE, "checkpoint", "new", "--geometry", "sd15", str(checkpoint)])
    weights = folder_gb(checkpoint)
    python = [sys.executable, "-m", "parure_bench.fullsize_unet"]
    figures = [
        measure("U-Net alone: export", [*python, str(checkpoint), str(work / "unet")], seconds=60, gb=6),
        measure(
            "all: checkpoint to bundle",
            [PARURE, "export", str(checkpoint), "--out", str(bundle), "--precision", "fp16", "--max-batch", "1",
             "--solver", "ddim", "--solver", "dpmpp-2m"],
        ),
        measure(
            "all: engines",
            [PARURE, "build", str(bundle), "--target", target, "--cache", str(cache)],
        ),
        measure("all: verify", [PARURE, "verify", str(bundle)]),
    ]  # fmt: skip
    whole = figures[1:]
    figures.append(
        Figure(
            "all: sum, peak",
            "",
            round(sum(f.seconds for f in whole), 1),
            max(f.peak_gb for f in whole),
            budget_seconds=600,
            budget_gb=12,
        )
    )
    figures += [engine_figure(path, target) for path in sorted((bundle / "engines").rglob("unet*.json"))]
    disk = folder_gb(bundle)
    report = {
        "environment": environment().model_dump(mode="json"),
        "weights_gb": round(weights, 2),
        "bundle_with_engines_gb": round(disk, 2),
        "engine_cache_gb": round(folder_gb(cache), 2),
        "figures": [asdict(f) | {"kept": f.kept} for f in figures],
    }
    results.mkdir(parents=True, exist_ok=True)
    (results / "fullsize.json").write_text(json.dumps(report, indent=2) + "\n")
    show(figures, weights, disk)


def measure(step: str, command: Sequence[str], *, seconds: float = 0, gb: float = 0) -> Figure:
    """Run `command`; ends the program where it fails."""
    click.echo(f"$ {' '.join(command)}", err=True)
    since = time.perf_counter()
    process = subprocess.Popen(command)
    peak = 0.0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, tree_gb(process.pid))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    code = process.wait()
    done.set()
    sampler.join()
    if code:
        raise SystemExit(f"{step} failed with exit code {code}")
    shown = " ".join([Path(command[0]).name, *command[1:]])
    return Figure(step, shown, round(time.perf_counter() - since, 1), round(peak, 2), seconds, gb)


def tree_gb(pid: int) -> float:
    """Resident memory of a process and all its descendants."""
    try:
        parent = psutil.Process(pid)
        return sum(p.memory_info().rss for p in [parent, *parent.children(recursive=True)]) / GB
    except psutil.NoSuchProcess:
        return 0.0


def engine_figure(record: Path, target: str) -> Figure:
    content = json.loads(record.read_text())
    return Figure(
        f"{record.stem} engine for {target}, {content['flavor']} {content['flavor_version']}",
        "parure build",
        content["build_seconds"],
        round(content["peak_bytes"] / GB, 2),
        budget_seconds=30,
        budget_gb=8,
    )


def folder_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / GB


def show(figures: Sequence[Figure], weights: float, disk: float) -> None:
    table = Table("step", "seconds", "budget", "peak GB", "budget", "kept")
    for f in figures:
        budgets = [f"{value:g}" if value else "" for value in (f.budget_seconds, f.budget_gb)]
        kept = "yes" if f.kept else "[red]NO[/]"
        table.add_row(f.step, f"{f.seconds:g}", budgets[0], f"{f.peak_gb:g}", budgets[1], kept)
    Console().print(table)
    Console().print(f"fp16 weights {weights:.2f} GB; bundle with engines {disk:.2f} GB: {disk / weights:.2f} x")


if __name__ == "__main__":
    main()
