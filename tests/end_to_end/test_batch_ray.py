"""The same batch on a real local Ray cluster of two workers."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from parure.batch.batch import Plan, run_batch
from parure.image import Pixels
from parure_bench.stopped import stopped
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `batch`, with a pyarrow that takes this numpy")
ray = pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = pytest.mark.xdist_group("batch")


@pytest.fixture(scope="module")
def models(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    folder = tmp_path_factory.mktemp("ray") / "models"
    write_repository(tiny_bundle, folder, options=RepositoryOptions.of(at_work=4, waiting=4, threads=1))
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(models) as running:
        running.wait_ready()
        yield running


@pytest.fixture
def second(models: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(models) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


ROW = {"photo": "photo.png", "ornament": "ornament.png", "box": [30, 40, 70, 75], "steps": 2}


def job_file(folder: Path, photo: Pixels, ornament: Pixels, count: int, *more: Any) -> Path:
    """Rows that differ in their seeds, and `more`."""
    Image.fromarray(photo).save(folder / "photo.png")
    Image.fromarray(ornament).save(folder / "ornament.png")
    rows = [*({**ROW, "seed": i} for i in range(count)), *more]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "jobs.jsonl"


def wait_for(out: Path, count: int) -> None:
    """Until the ledger has so many lines."""
    until = time.monotonic() + 120
    while not (out / "ledger.jsonl").exists() or (out / "ledger.jsonl").read_bytes().count(b"\n") < count:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_ray_cluster_makes_resumes_and_rejects_as_this_process_does(
    cluster: Any, server: EmbeddedServer, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    wrong = [{**ROW, "photo": "missing.png"}, {**ROW, "box": [90, 40, 300, 75]}]
    jobs = job_file(tmp_path, photo, ornament, 20, {**ROW, "seed": 3}, *wrong)
    tables = {}
    for engine in ("ray", "local"):
        out = tmp_path / engine
        summary = run_batch(Plan(str(jobs), str(out), (server.addresses.grpc,), engine=engine, quiet=True))  # type: ignore[arg-type]
        assert (summary.done, summary.rejected, summary.failed) == (21, 2, 0)
        tables[engine] = sorted(parquet.read_table(out / "results.parquet").to_pylist(), key=lambda r: r["row"])
    for one, other in zip(tables["ray"], tables["local"], strict=True):
        assert all(one[name] == other[name] for name in ("key", "status", "reason", "picture", "mask"))
        if one["picture"]:
            pixels = [np.asarray(Image.open(tmp_path / engine / one["picture"])) for engine in tables]
            assert np.array_equal(*pixels)
    again = run_batch(Plan(str(jobs), str(tmp_path / "ray"), (server.addresses.grpc,), engine="ray", quiet=True))
    assert again.how == {"new": 1, "resumed": 22}


def test_a_worker_that_is_lost_costs_no_job(
    cluster: Any, server: EmbeddedServer, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    jobs, out = job_file(tmp_path, photo, ornament, 80), tmp_path / "out"
    killed = []

    def kill() -> None:
        wait_for(out, 10)
        ours = psutil.Process().children(recursive=True)
        worker = next(process for process in ours if process.cmdline()[:1] and "ray::Worker" in process.cmdline()[0])
        worker.kill()
        killed.append(worker.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    summary = run_batch(Plan(str(jobs), str(out), (server.addresses.grpc,), engine="ray", quiet=True))
    thread.join(60)
    assert killed and summary.ok and summary.done == 80
    assert len(list((out / "pictures").iterdir())) == 80


def test_a_server_that_freezes_costs_no_job_and_no_deadline(
    cluster: Any,
    server: EmbeddedServer,
    second: EmbeddedServer,
    photo: Pixels,
    ornament: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("parure.batch.endpoint.SILENCE", 1.0)
    monkeypatch.setattr("parure.batch.endpoint._PROBE_SECONDS", 2.0)
    jobs, out = job_file(tmp_path, photo, ornament, 80), tmp_path / "out"
    urls = (server.addresses.grpc, second.addresses.grpc)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(run_batch, Plan(str(jobs), str(out), urls, engine="ray", deadline=600.0, quiet=True))
        wait_for(out, 20)
        with stopped(second.pid):
            summary = batch.result(120)
    assert summary.ok and summary.done == 80 and all(summary.endpoints.values())
