"""Batches through real servers: the in-process pictures, and nothing lost when runners, servers and models die."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import parure
from parure.batch.batch import Plan, run_batch
from parure.image import Pixels
from parure_bench.stopped import stopped
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

pyarrow = pytest.importorskip("pyarrow", reason="needs the extra `batch`")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `batch`, with a pyarrow that takes this numpy")
pytestmark = pytest.mark.xdist_group("batch")

BOX = [30, 40, 70, 75]
AT_WORK, WAITING = 4, 4
IN_FLIGHT = AT_WORK + 2  # per endpoint


class Fleet:
    """Two servers, each of which can be ended and started again at its address."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.servers = [self._started(0), self._started(0)]
        for server in self.servers:
            server.wait_ready()

    def _started(self, port: int) -> EmbeddedServer:
        return EmbeddedServer(self._repository, grpc_port=port).__enter__()

    @property
    def urls(self) -> list[str]:
        return [server.addresses.grpc for server in self.servers]

    def restart(self, index: int, end: Callable[[EmbeddedServer], None]) -> None:
        """`end` the server, however; then start another one at the same address."""
        port = int(self.urls[index].rsplit(":", 1)[1])
        end(self.servers[index])
        self.servers[index].stop()
        self.servers[index] = self._started(port)
        self.servers[index].wait_ready()

    def pictures(self, outcome: str = "made") -> int:
        """How many pictures the servers that run now have ended so."""
        wanted = rf'^parure_pictures_total{{[^}}]*model="tryon"[^}}]*outcome="{outcome}"[^}}]*}} (\S+)$'
        other = rf'^parure_pictures_total{{[^}}]*outcome="{outcome}"[^}}]*model="tryon"[^}}]*}} (\S+)$'
        count = 0.0
        for server in self.servers:
            text = urllib.request.urlopen(server.addresses.metrics, timeout=30).read().decode()
            found = re.search(wanted, text, re.MULTILINE) or re.search(other, text, re.MULTILINE)
            assert found
            count += float(found[1])
        return int(count)

    def close(self) -> None:
        for server in self.servers:
            server.stop()


@pytest.fixture(scope="module")
def fleet(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    folder = tmp_path_factory.mktemp("batch")
    options = RepositoryOptions.of(at_work=AT_WORK, waiting=WAITING, threads=1)
    write_repository(tiny_bundle, folder / "models", options=options)
    running = Fleet(folder / "models")
    yield running
    running.close()


@pytest.fixture
def pictures(photo: Pixels, ornament: Pixels, tmp_path: Path) -> Path:
    """Three photos and two ornaments."""
    for number in range(3):
        Image.fromarray(np.roll(photo, 5 * number, axis=1)).save(tmp_path / f"photo{number}.png")
    for number in range(2):
        Image.fromarray(np.roll(ornament, 60 * number, axis=2)).save(tmp_path / f"ornament{number}.png")
    return tmp_path


def job_file(folder: Path, count: int, **more: Any) -> Path:
    rows = [
        {"photo": f"photo{i % 3}.png", "ornament": f"ornament{i % 2}.png", "box": BOX, "seed": i, "steps": 2} | more
        for i in range(count)
    ]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "jobs.jsonl"


def command(jobs: Path, out: object, urls: Sequence[str], *more: object) -> list[str]:
    named = [option for url in urls for option in ("--endpoint", url)]
    return [sys.executable, "-m", "parure", "batch", *map(str, (jobs, *named, "--out", out, "--json", *more))]


def run(jobs: Path, out: object, urls: Sequence[str], *more: object) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(command(jobs, out, urls, *more), capture_output=True, text=True, timeout=200)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def table(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = parquet.read_table(out / "results.parquet").to_pylist()
    return sorted(rows, key=lambda row: row["row"])


def whole(out: Path) -> set[str]:
    """The names of all pictures; each must open, and lie beside its mask."""
    names = {path.name for path in (out / "pictures").glob("*.png")} if (out / "pictures").exists() else set()
    for name in names:
        for folder in ("pictures", "masks"):
            Image.open(out / folder / name).load()
    return names


def recorded(out: Path) -> list[str]:
    """The keys that whole lines of the ledger say are done."""
    path = out / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line[9:]) for line in lines if line.endswith(b"\n")]
    return [record["key"] for record in records if record["status"] == "done"]


def test_a_batch_makes_the_in_process_pictures_and_its_table_tells_of_them(
    fleet: Fleet, pictures: Path, tiny_bundle: Path
) -> None:
    (pictures / "jobs.csv").write_text(
        'id,photo,ornament,box,seed,steps\nfirst,photo0.png,ornament0.png,"30,40,70,75",7,3\n'
        'second,photo1.png,ornament1.png,"30,40,70,75",,\n'
    )
    urls = [fleet.servers[0].addresses.grpc, fleet.servers[1].addresses.http]
    code, summary = run(pictures / "jobs.csv", pictures / "out", urls)
    assert code == 0 and summary["ok"] and summary["done"] == 2
    rows = table(pictures / "out")
    assert [row["id"] for row in rows] == ["first", "second"] and {row["endpoint"] for row in rows} == set(urls)
    assert "first" in rows[0]["picture"] and rows[0]["attempts"] == 1 and rows[0]["seconds"] > 0
    with parure.open(tiny_bundle, threads=1) as local:
        expected = local(pictures / "photo0.png", pictures / "ornament0.png", tuple(BOX), seed=7, steps=3)
    for name, image in (("picture", expected.image), ("mask", expected.mask)):
        made = np.asarray(Image.open(pictures / "out" / rows[0][name]))
        assert np.array_equal(made, np.asarray(image))
    page = (pictures / "out" / "index.html").read_text()
    assert page.count("<img") == 2 and "first" in page


def kill_at(moments: Sequence[float], jobs: Path, out: Path, fleet: Fleet) -> None:
    """Kill -9 a runner at each of the moments, seconds after its first sign of life; look at what it leaves."""
    done: set[str] = set(recorded(out))
    for moment in moments:
        before = len(recorded(out))
        process = subprocess.Popen(command(jobs, out, fleet.urls), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(recorded(out)) == before and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(moment)
        process.kill()
        process.wait()
        names, keys = whole(out), recorded(out)
        assert done <= set(keys), "a record was lost"
        assert len(keys) == len(set(keys)), "a picture was made twice"
        assert {f"{key}.png" for key in keys} <= names, "a record without its picture"
        assert len(names) - len(keys) <= 2 * IN_FLIGHT
        done = set(keys)


def check_killing(points: int, count: int, longest: float, fleet: Fleet, pictures: Path) -> None:
    jobs, out = job_file(pictures, count), pictures / "out"
    before = fleet.pictures() + fleet.pictures("cancelled")
    kill_at([random.uniform(0, longest) for _ in range(points)], jobs, out, fleet)
    code, summary = run(jobs, out, fleet.urls)
    assert code == 0 and summary["done"] == count, summary
    assert len(whole(out)) == count and len(recorded(out)) == len(set(recorded(out))) == count
    assert [row["status"] for row in table(out)] == ["done"] * count
    time.sleep(0.5)
    redone = fleet.pictures() + fleet.pictures("cancelled") - before - count
    assert redone <= points * 2 * IN_FLIGHT
    assert not list(out.rglob("*.part"))


def test_a_runner_killed_at_any_moment_loses_tears_and_doubles_nothing(fleet: Fleet, pictures: Path) -> None:
    check_killing(5, 120, 0.4, fleet, pictures)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_runner_killed_fifty_times_loses_tears_and_doubles_nothing(fleet: Fleet, pictures: Path) -> None:
    check_killing(50, 1200, 0.8, fleet, pictures)


@pytest.mark.parametrize("count", [180, pytest.param(1000, marks=pytest.mark.soak)])
def test_poison_rows_are_recorded_with_their_reason_and_the_rest_is_done(
    count: int, fleet: Fleet, pictures: Path
) -> None:
    (pictures / "torn.png").write_bytes((pictures / "photo0.png").read_bytes()[:300])
    poison = [
        {"photo": "missing.png"}, {"photo": "torn.png"}, {"box": [90, 40, 300, 75]}, {"steps": 100_000},
        {"solver": "runge-kutta"}, {"mode": "instant"}, {"ornament": "/dev/zero"}, {"seed": -1}, None,
    ]  # fmt: skip
    lines = job_file(pictures, count).read_text().splitlines()
    places = list(range(3, count, 20))
    for number, place in enumerate(places):
        change = poison[number % len(poison)]
        lines[place] = "{]" if change is None else json.dumps(json.loads(lines[place]) | change)
    (pictures / "jobs.jsonl").write_text("\n".join(lines))
    code, dry = run(pictures / "jobs.jsonl", pictures / "out", fleet.urls, "--dry-run")
    assert code == 1 and dry["rejected"] == len(places) and not (pictures / "out").exists()
    code, summary = run(pictures / "jobs.jsonl", pictures / "out", fleet.urls)
    assert code == 1 and summary["done"] == count - len(places) and summary["retried"] == 0
    rows = table(pictures / "out")
    assert [row["row"] for row in rows if row["status"] == "rejected"] == places
    assert all(row["reason"] for row in rows if row["status"] == "rejected")
    assert sorted(row for row, *_ in summary["reasons"]) == sorted(row for row, *_ in dry["reasons"])


class Running:
    """A batch under way, whose ledger tells how far it is."""

    def __init__(self, jobs: Path, out: Path, urls: Sequence[str], *more: object) -> None:
        self.out = out
        self.process = subprocess.Popen(command(jobs, out, urls, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 60
        while len(recorded(self.out)) < count:
            assert self.process.poll() is None and time.monotonic() < until, self.process.communicate()
            time.sleep(0.01)

    def end(self) -> tuple[int, dict[str, Any]]:
        stdout, stderr = self.process.communicate(timeout=120)
        assert b"Traceback" not in stderr, stderr.decode()
        return self.process.returncode, json.loads(stdout) if stdout else {}


def test_ctrl_c_lets_what_is_in_flight_end_and_the_same_command_goes_on(fleet: Fleet, pictures: Path) -> None:
    jobs, out = job_file(pictures, 150), pictures / "out"
    batch = Running(jobs, out, fleet.urls)
    batch.wait_for(10)
    before = fleet.pictures("cancelled")
    batch.process.send_signal(signal.SIGINT)
    code, summary = batch.end()
    assert code == 130 and summary["stopped"] == "stopped by SIGINT" and 10 <= summary["done"] < 150
    assert fleet.pictures("cancelled") == before and len(recorded(out)) == summary["done"] == len(table(out))
    code, again = run(jobs, out, fleet.urls)
    assert code == 0 and again["how"]["resumed"] == summary["done"] and again["done"] == 150


def test_ctrl_c_twice_ends_now_and_gives_up_what_is_in_flight(fleet: Fleet, pictures: Path) -> None:
    jobs, out = job_file(pictures, 20, steps=900), pictures / "out"
    first, rest = jobs.read_text().split("\n", 1)
    jobs.write_text(json.dumps(json.loads(first) | {"steps": 1}) + "\n" + rest)
    batch = Running(jobs, out, fleet.urls)
    batch.wait_for(1)
    cancelled = fleet.pictures("cancelled")
    for _ in range(2):
        batch.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    code, summary = batch.end()
    assert code == 130 and summary["seconds"] < 30 and summary["failed"] == 0
    until = time.monotonic() + 10
    while fleet.pictures("cancelled") == cancelled:
        assert time.monotonic() < until, "the servers go on with pictures that nobody waits for"
        time.sleep(0.05)
    assert len(recorded(out)) == summary["done"]


def test_a_full_disk_ends_the_batch_cleanly_and_room_lets_it_go_on(fleet: Fleet, pictures: Path) -> None:
    out = pictures / "small"
    out.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", out], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        jobs = job_file(pictures, 60)
        code, summary = run(jobs, out, fleet.urls)
        assert code == 1 and "No space left" in summary["stopped"] and 0 < summary["done"] < 60
        assert not list(out.rglob("*.part"))
        keys = recorded(out)
        assert {f"{key}.png" for key in keys} <= whole(out)
        subprocess.run(["mount", "-o", "remount,size=40m", out], check=True)
        code, again = run(jobs, out, fleet.urls)
        assert code == 0 and again["done"] == 60 and again["how"]["resumed"] >= summary["done"]
    finally:
        subprocess.run(["umount", "-l", out], check=True)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_one_of_two_servers_killed_costs_no_job(times: int, fleet: Fleet, pictures: Path) -> None:
    for turn in range(times):
        jobs, out = job_file(pictures, 150), pictures / f"out{turn}"
        batch = Running(jobs, out, fleet.urls)
        batch.wait_for(random.randint(1, 100))
        fleet.servers[0].kill()
        code, summary = batch.end()
        assert code == 0 and summary["done"] == 150 and summary["failed"] == 0
        assert all(row["status"] == "done" for row in table(out))
        fleet.restart(0, lambda server: None)


@pytest.mark.parametrize("times", [1, pytest.param(5, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_servers_restarted_in_turn_cost_no_job(times: int, fleet: Fleet, pictures: Path) -> None:
    count = 200 * times
    jobs, out = job_file(pictures, count), pictures / "out"
    batch = Running(jobs, out, fleet.urls)
    for turn in range(2 * times):
        batch.wait_for(min(30 * (turn + 1), count - 20))
        fleet.restart(turn % 2, lambda server: os.kill(server.pid, signal.SIGTERM))
    code, summary = batch.end()
    assert code == 0 and summary["done"] == count and summary["failed"] == 0, summary


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_freezes_costs_no_job_and_no_deadline(
    scheme: str, fleet: Fleet, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parure.batch.endpoint.SILENCE", 1.0)
    monkeypatch.setattr("parure.batch.endpoint._PROBE_SECONDS", 2.0)
    jobs, out = job_file(pictures, 100), pictures / "out"
    urls = tuple(getattr(server.addresses, scheme) for server in fleet.servers)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(run_batch, Plan(str(jobs), str(out), urls, deadline=600.0, quiet=True))
        while len(recorded(out)) < 20 and not batch.done():
            time.sleep(0.01)
        with stopped(fleet.servers[0].pid):
            summary = batch.result(120)
    assert summary.ok and summary.done == 100 and all(summary.endpoints.values())


def test_two_batches_do_not_write_to_one_place(fleet: Fleet, pictures: Path) -> None:
    jobs, out = job_file(pictures, 100, steps=100), pictures / "out"  # long enough for another one to come
    batch = Running(jobs, out, fleet.urls)
    batch.wait_for(1)
    code, other = run(jobs, out, fleet.urls)
    assert code == 2 and "another batch is writing" in other["error"]
    batch.process.send_signal(signal.SIGTERM)
    assert batch.end()[0] == 143


def test_no_endpoint_is_an_error_that_names_each(pictures: Path) -> None:
    code, said = run(job_file(pictures, 1), pictures / "out", ["grpc://127.0.0.1:9", "http://127.0.0.1:10"])
    assert code == 1 and "127.0.0.1:9" in said["error"] and "127.0.0.1:10" in said["error"]


@pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java: apt-get install default-jre-headless")
def test_the_spark_recipe_of_the_docs_makes_every_partition(fleet: Fleet, pictures: Path) -> None:
    for module in ("pyspark", "pandas"):
        pytest.importorskip(module, reason="the recipe needs them: pip install pyspark 'pandas<3'")
    text = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()
    recipe = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "Spark" in block)
    jobs, out, script = pictures / "jobs.parquet", pictures / "out", pictures / "recipe.py"
    for given, here in (
        ("s3://bucket/jobs.parquet", jobs), ("s3://bucket/results", out), ("grpc://gpu-1:8001", fleet.urls[0]),
        ("PARTITIONS = 16", "PARTITIONS = 3"),
    ):  # fmt: skip
        assert given in recipe
        recipe = recipe.replace(given, str(here))
    script.write_text(recipe)
    photos = ["photo0.png", "missing.png", "photo1.png", "photo2.png"]
    rows = [
        {"id": name[:-4], "photo": str(pictures / name), "ornament": str(pictures / f"ornament{i % 2}.png")}
        | {"box": [float(side) for side in BOX], "seed": i}
        for i, name in enumerate(photos)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), jobs)
    spark = {"PYSPARK_PYTHON": sys.executable, "SPARK_MASTER": "local[2]", "SPARK_LOCAL_IP": "127.0.0.1"}
    subprocess.run([sys.executable, str(script)], env=os.environ | spark, check=True, timeout=300)
    found = {row["id"]: row for row in parquet.read_table(out / "table").to_pylist()}
    assert {name for name, row in found.items() if row["status"] == "done"} == {"photo0", "photo1", "photo2"}
    assert found["missing"]["status"] == "failed" and "does not exist" in found["missing"]["reason"]
    assert whole(out) == {"photo0.png", "photo1.png", "photo2.png"}


def stub_of(server: EmbeddedServer, model: str) -> psutil.Process:
    """The process that runs the python of `model`."""
    for child in psutil.Process(server.pid).children(recursive=True):
        if any(f"/{model}/" in part for part in child.cmdline()):
            return child
    raise AssertionError(f"no process runs {model}")


@pytest.mark.parametrize("model", ["unet", "tryon"])
def test_an_endpoint_with_a_dead_stub_is_ejected_though_it_says_that_it_is_healthy(
    model: str, fleet: Fleet, pictures: Path
) -> None:
    jobs, out = job_file(pictures, 60), pictures / "out"
    batch = Running(jobs, out, fleet.urls, "--per-endpoint", 1, "--deadline", 5)
    batch.wait_for(5)
    stub_of(fleet.servers[0], model).kill()
    code, summary = batch.end()
    url = f"http://{fleet.servers[0].addresses.http.removeprefix('http://')}/v2/health/ready"
    assert urllib.request.urlopen(url, timeout=30).status == 200
    assert code == 0 and summary["done"] == 60 and summary["failed"] == 0
    assert sum(row["attempts"] - 1 for row in table(out)) <= 3
    if model == "unet":  # the other one comes last, and nobody needs the server any more
        fleet.restart(0, lambda server: server.kill())
