"""The same batch on a real local Ray cluster of two workers."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from parure.batch.batch import Plan, run_batch
from parure.image import Pixels
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `batch`, with a pyarrow that takes this numpy")
ray = pytest.importorskip("ray", reason="needs the extra `ray`")
pytestmark = pytest.mark.xdist_group("batch")


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    models = tmp_path_factory.mktemp("ray") / "models"
    write_repository(tiny_bundle, models, options=RepositoryOptions.of(at_work=4, waiting=4, threads=1))
    with EmbeddedServer(models) as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_a_ray_cluster_makes_resumes_and_rejects_as_this_process_does(
    cluster: Any, server: EmbeddedServer, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(ornament).save(tmp_path / "ornament.png")
    row = {"photo": "photo.png", "ornament": "ornament.png", "box": [30, 40, 70, 75], "steps": 2}
    rows: list[Any] = [row | {"seed": i} for i in range(20)]
    rows += [row | {"seed": 3}, row | {"photo": "missing.png"}, row | {"box": [90, 40, 300, 75]}]
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(json.dumps(each) + "\n" for each in rows))
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
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(ornament).save(tmp_path / "ornament.png")
    row = {"photo": "photo.png", "ornament": "ornament.png", "box": [30, 40, 70, 75], "steps": 2}
    jobs, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    jobs.write_text("".join(json.dumps(row | {"seed": i}) + "\n" for i in range(80)))
    killed = []

    def kill() -> None:
        while not (out / "ledger.jsonl").exists() or (out / "ledger.jsonl").read_bytes().count(b"\n") < 10:
            time.sleep(0.01)
        ours = psutil.Process().children(recursive=True)
        worker = next(process for process in ours if process.cmdline()[:1] and "ray::Worker" in process.cmdline()[0])
        worker.kill()
        killed.append(worker.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    summary = run_batch(Plan(str(jobs), str(out), (server.addresses.grpc,), engine="ray", quiet=True))
    thread.join(5)
    assert killed and summary.ok and summary.done == 80
    assert len(list((out / "pictures").iterdir())) == 80
