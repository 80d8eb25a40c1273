"""A real server under load, for a moment."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from parure.cli import main
from parure.image import Pixels
from parure_bench.record import Record, load_record
from parure_bench.serve.counters import read_counters
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "models"
    write_repository(tiny_bundle, folder, options=RepositoryOptions.of(at_work=8, waiting=4, threads=1, max_batch=4))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    with EmbeddedServer(repository, admin_key="sesame") as running:
        running.wait_ready()
        yield running


@pytest.fixture
def pictures(tmp_path: Path, photo: Pixels, ornament: Pixels) -> list[str]:
    for name, pixels in (("photo", photo), ("ornament", ornament)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return [
        "--photo",
        str(tmp_path / "photo.png"),
        "--ornament",
        str(tmp_path / "ornament.png"),
        "--box",
        "30,40,70,75",
    ]


def measure(server: EmbeddedServer, out: Path, *options: str) -> tuple[int, Record]:
    arguments = ["bench", "serve", server.addresses.grpc, "--metrics", server.addresses.metrics, "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--steps", "2", *options])
    assert isinstance(ended.value.code, int)
    return ended.value.code, load_record(out)


def test_levels_of_both_kinds_are_recorded_with_batches_bytes_cache_and_settings(
    server: EmbeddedServer, pictures: list[str], tmp_path: Path
) -> None:
    levels = ["--concurrency", "1,3", "--rates", "5/s", "--seconds", "0.5"]
    ways = ["--loop", "server", "--loop", "client", "--cache", "warm", "--cache", "cold"]
    code, record = measure(server, tmp_path / "serve.json", *pictures, *levels, *ways)
    assert code == 0 and record.incomplete is None and record.environment.bundle
    assert len(record.find("request")) == 2 * 2 * 3
    for series in record.find("request"):
        figures = series.figures
        assert series.samples and figures["complete"] == 1 and figures["steps"] == 2 and figures["calls.unet"] == 4
        assert figures["bytes_sent"] > 1000 and figures["bytes_received"] > 1000 and figures["mean_unet_batch"] >= 1
    hits = {
        s.labels["ornaments"]: s.figures["ornament_hits"] for s in record.find("request", loop="server", concurrency=1)
    }
    assert hits == {"warm": 1.0, "cold": 0.0}
    assert record.find("served", model="tryon")[0].figures == {"at_work": 8, "waiting": 4}
    unet = record.find("served", model="unet")[0].figures
    assert (unet["max_batch"], unet["preferred.4"], unet["threads"], unet["queue_delay"]) == (4, 4, 1, 0.001)
    assert record.find("knee", by="concurrency", loop="server", ornaments="warm")
    assert any("Kleinrock" in note for note in record.notes)


def test_a_server_killed_in_mid_run_leaves_a_record_that_says_so(
    repository: Path, pictures: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill_once_at_work() -> None:
        until = time.monotonic() + 30
        while read_counters(mortal.addresses.metrics).unet_calls < 20 and time.monotonic() < until:
            time.sleep(0.05)
        mortal.kill()

    with EmbeddedServer(repository) as mortal:
        mortal.wait_ready()
        killer = threading.Thread(target=kill_once_at_work)
        killer.start()
        code, record = measure(mortal, tmp_path / "serve.json", *pictures, "--concurrency", "2", "--seconds", "60")
        killer.join()
    assert code == 1 and "died in mid-run" in capsys.readouterr().err
    assert record.incomplete is not None and "died in mid-run" in record.incomplete
    level = record.find("request")[0]
    assert level.samples and level.figures["complete"] == 0 and level.figures["errors.ServerUnavailable"] >= 3


def test_without_metrics_the_run_goes_on_and_the_record_says_what_is_missing(
    server: EmbeddedServer, pictures: list[str], tmp_path: Path
) -> None:
    nowhere = ["--metrics", "http://127.0.0.1:9/metrics"]
    code, record = measure(
        server,
        tmp_path / "serve.json",
        *pictures,
        "--concurrency",
        "1",
        "--rates",
        "none",
        "--seconds",
        "0.2",
        *nowhere,
    )
    assert code == 0 and any("no batch sizes and no cache hits" in note for note in record.notes)
    assert "mean_unet_batch" not in record.find("request")[0].figures


def test_statistics_are_open_to_who_has_the_key_that_was_given(server: EmbeddedServer) -> None:
    url = f"{server.addresses.http}/v2/models/unet/stats"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"parure": "sesame"}), timeout=30) as reply:
        assert reply.status == 200
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"parure": "open"}), timeout=30)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ftp://here"], 2, "is not the URL of a server"),
        (["grpc://127.0.0.1:9"], 1, "cannot be reached"),
        (["grpc://127.0.0.1:9", "--rates", "5"], 2, "--rates is '5'; expected"),
        (["grpc://127.0.0.1:9", "--concurrency", "0"], 2, "no list of whole numbers"),
    ],
)
def test_wrong_input_is_told(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "serve", *arguments, "--out", str(tmp_path / "serve.json")])
    assert ended.value.code == code and message in capsys.readouterr().err
    assert not (tmp_path / "serve.json").exists()
