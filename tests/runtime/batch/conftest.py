"""Endpoints that are made up: what a server does is decided by the test, what the batch does is real."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow.parquet", reason="needs the extra `batch`, with a pyarrow that takes this numpy")

from parure.batch.batch import Plan, Summary, run_batch
from parure.batch.endpoint import Connection
from parure.errors import ServerError, ServerUnavailable
from parure.image import load_image

MANIFEST = SimpleNamespace(loop=SimpleNamespace(default_steps=4, default_solver="ddim", default_guidance=1.0))
Behaviour = Callable[["FakeServer", dict[str, Any]], None]


@dataclass
class FakeServer:
    """Answers with the photo; `behaviour` may raise or wait first."""

    behaviour: Behaviour = lambda server, asked: None
    places: int = 2
    alive: bool = True
    identity: str = "a" * 64
    asked: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    probes: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    close: Callable[[], None] = lambda: None

    def __call__(self, photo: bytes, ornament: bytes, box: Sequence[float], **more: Any) -> Any:
        asked = {"photo": photo, "ornament": ornament, "box": box, **more}
        with self.lock:
            self.asked.append(asked)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            image = Image.fromarray(load_image(photo, subject="photo"))
            if not self.alive:
                raise ServerUnavailable("the server went away")
            self.behaviour(self, asked)
        finally:
            with self.lock:
                self.at_once -= 1
        steps = more.get("steps") or 4
        seconds = {"total": 0.004, "queue": 0.0}
        return SimpleNamespace(image=image, mask=image.convert("L"), timings=seconds, masks=np.zeros((steps, 1, 1)))


class Servers:
    """Fake servers by URL, as `run_batch` reaches them."""

    def __init__(self, **servers: FakeServer) -> None:
        self.by_url = {f"grpc://{name}:1": server for name, server in servers.items()}

    def connect(self, url: str) -> Connection:
        server = self.by_url[url]
        if not server.alive:
            raise ServerUnavailable(f"{url} cannot be reached")
        return Connection(server, MANIFEST, server.identity, server.places)  # type: ignore[arg-type]

    def check(self, url: str) -> None:
        self.by_url[url].probes += 1
        if not self.by_url[url].alive:
            raise ServerError(f"{url} does not answer")

    def run(self, jobs: Path, out: object, **options: Any) -> Summary:
        plan = Plan(str(jobs), str(out), tuple(self.by_url), quiet=True, **options)
        return run_batch(plan, connect=self.connect, check=self.check, live=lambda url: self.by_url[url].alive)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr("parure.batch.dispatcher.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("parure.batch.runner._PAUSE", 0.001)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with photos 0.png to 9.png and ornaments a.png to c.png, all different."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate([*map(str, range(10)), "a", "b", "c"]):
        Image.new("RGB", (40, 30), (number * 15, 100, 50)).save(folder / f"{name}.png")
    return folder


def write_jobs(folder: Path, rows: Sequence[dict[str, Any] | str], name: str = "jobs.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder / name


def row(photo: object, ornament: str = "a", **more: Any) -> dict[str, Any]:
    return {"photo": f"{photo}.png", "ornament": f"{ornament}.png", "box": [5, 5, 25, 25], **more}


def table(out: Path) -> list[dict[str, Any]]:
    """The results, by row."""
    import pyarrow.parquet

    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(out / "results.parquet").to_pylist()
    return sorted(rows, key=lambda each: each["row"])


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)


@pytest.fixture
def helpers() -> Iterator[SimpleNamespace]:
    yield SimpleNamespace(
        FakeServer=FakeServer, Servers=Servers, write_jobs=write_jobs, row=row, table=table, eventually=eventually
    )
