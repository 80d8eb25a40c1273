"""A batch from a bucket into a bucket, over the S3 protocol: killed, run again, and whole."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from parure.image import Pixels
from parure.tryon_wire import png
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

WHY = "needs an S3 server to test with: pip install s3fs 'moto[s3,server]'"
for name in ("s3fs", "boto3", "flask"):
    pytest.importorskip(name, reason=WHY)
moto_server = pytest.importorskip("moto.server", reason=WHY)
pytestmark = pytest.mark.xdist_group("batch")
JOBS = 150


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """fsspec's view of a server of S3, to which the environment points, with one bucket."""
    import boto3
    import fsspec

    server = moto_server.ThreadedMotoServer(port=0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
    for variable, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{variable}", value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    server.stop()


@pytest.fixture(scope="module")
def url(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("s3") / "repository"
    write_repository(tiny_bundle, repository, options=RepositoryOptions.of(at_work=4, waiting=4, threads=1))
    with EmbeddedServer(repository) as server:
        server.wait_ready()
        yield server.addresses.grpc


def test_a_batch_from_s3_to_s3_is_killed_and_goes_on(bucket: Any, url: str, photo: Pixels, ornament: Pixels) -> None:
    rows = [{"photo": f"{i % 3}.png", "ornament": "o.png", "box": [30, 40, 70, 75], "seed": i} for i in range(JOBS)]
    for number in range(3):
        bucket.pipe_file(f"bucket/in/{number}.png", png(np.roll(photo, 5 * number, axis=1)).tobytes())
    bucket.pipe_file("bucket/in/o.png", png(ornament).tobytes())
    bucket.pipe_file("bucket/in/jobs.jsonl", "\n".join(json.dumps(row | {"steps": 2}) for row in rows).encode())
    command = [sys.executable, "-m", "parure", "batch", "s3://bucket/in/jobs.jsonl", "--endpoint", url]
    command += ["--out", "s3://bucket/out", "--json"]
    for made in (10, 60):
        batch = subprocess.Popen(command, env=os.environ, stdout=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while not bucket.exists("bucket/out/pictures") or len(bucket.ls("bucket/out/pictures")) < made:
            assert batch.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        batch.kill()
        batch.wait()
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["done"] == JOBS and summary["how"]["resumed"] >= 30
    for folder in ("pictures", "masks"):
        names = bucket.ls(f"bucket/out/{folder}")
        assert len(names) == JOBS
        for found in names:
            Image.open(io.BytesIO(bucket.cat_file(found))).load()
    again = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=200).stdout)
    assert again["how"] == {"resumed": JOBS}
    assert bucket.exists("bucket/out/results.parquet") and bucket.exists("bucket/out/index.html")
