"""Real Triton servers whose components sleep: what is left is what parure itself costs, and how it scales."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from parure.bundle import Bundle
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

AT_WORK, WAITING = 4, 8


def sleeping_repository(work: Path, bundle: Path | None, seconds: Mapping[str, float], *, cached: int = 0) -> Path:
    """A model repository in `work`, with `seconds` of sleep by component, 0 where it names none.

    `cached`: how many ornaments a server keeps; 0 for the usual bound.
    """
    source = bundle or _demo_bundle(work)
    manifest = Bundle.open(source).manifest
    ornament = 4 * (manifest.features.length + 257 * 1024)
    cache = -(-cached * ornament >> 20) if cached else 1024
    options = RepositoryOptions.of(at_work=AT_WORK, waiting=WAITING, ornament_cache=cache, queue_delay=0)
    write_repository(source, work / "models", options=options)
    for component in manifest.components:
        version = work / "models" / component.name / "1"
        shutil.copyfile(Path(__file__).with_name("sleeping_model.py"), version / "model.py")
        (version / "seconds.json").write_text(json.dumps(seconds.get(component.name, 0.0)))
    return work / "models"


@contextmanager
def servers(repository: Path, count: int) -> Iterator[list[EmbeddedServer]]:
    with ExitStack() as stack:
        running = [stack.enter_context(EmbeddedServer(repository)) for _ in range(count)]
        for server in running:
            server.wait_ready()
        yield running


def write_jobs(folder: Path, count: int, *, ornaments: int = 1, steps: int = 2, side: int = 256) -> Path:
    """A job file of `count` rows, and its pictures: one photo, `ornaments` different ones, every row another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0:side, 0:side]
    texture = np.random.default_rng(0).integers(0, 12, (side, side))
    photo = np.stack([rows * 255 // side, columns * 255 // side, 120 + texture], axis=2).astype(np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    for number in range(ornaments):
        picture = np.full((96, 96, 3), 250, np.uint8)
        picture[20:76, 20:76] = (number // 256, number % 256, 7)
        Image.fromarray(picture).save(folder / f"ornament{number}.png")
    box = [side * 0.4, side * 0.4, side * 0.6, side * 0.6]
    with (folder / "jobs.jsonl").open("w") as stream:
        for i in range(count):
            row = {"photo": "photo.png", "ornament": f"ornament{i % ornaments}.png", "box": box}
            stream.write(json.dumps(row | {"seed": i, "steps": steps}) + "\n")
    return folder / "jobs.jsonl"


def _demo_bundle(work: Path) -> Path:
    from parure_export.demo.showcase import prepared_bundle  # torch, which would be in every peak of memory

    return prepared_bundle(work / "bundle", lambda text: click.echo(text, err=True))


def counted(running: Sequence[EmbeddedServer], family: str, **labels: str) -> float:
    """The sum over servers of a counter of the model `tryon`."""
    wanted = [f'{key}="{value}"' for key, value in (labels | {"model": "tryon"}).items()]
    total = 0.0
    for server in running:
        text = urllib.request.urlopen(server.addresses.metrics, timeout=5).read().decode()
        for line in text.splitlines():
            if re.match(rf"{family}{{", line) and all(label in line for label in wanted):
                total += float(line.rsplit(" ", 1)[1])
    return total


def urls(running: Sequence[EmbeddedServer]) -> tuple[str, ...]:
    return tuple(server.addresses.grpc for server in running)


def write_report(results: Path, name: str, report: Mapping[str, Any]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / name).write_text(json.dumps(report, indent=2) + "\n")
    click.echo(json.dumps({key: value for key, value in report.items() if key != "environment"}, indent=2))
