"""NVIDIA's perf_analyzer on the model `tryon_unary`, beside our own load on the same server.

The binary comes from public packages and is kept in a cache folder: from the wheel tritonclient 2.50.0 (manylinux1; later
ones need a newer glibc), the CUDA runtime that it is linked to, and Debian's libb64.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from parure.errors import InputError, ParureError
from parure.executor import Array
from parure.manifest import Manifest
from parure.request import Asked, read_request
from parure.tryon_wire import UNARY_MODEL, call_tensors
from parure_bench.record import Series
from parure_bench.serve.inputs import Case
from parure_triton.flags import ADMIN_HEADER

WHEELS = (("tritonclient==2.50.0", "manylinux1_x86_64"), ("nvidia-cuda-runtime-cu12", "manylinux2014_x86_64"))
DEBIAN = "libb64-0d"
ANALYZED = "perf_analyzer"
_WAIT = 900  # seconds for all levels


@dataclass(frozen=True)
class Analyzer:
    """The program, and where its libraries are."""

    binary: Path
    libraries: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "LD_LIBRARY_PATH": str(self.libraries)}


@dataclass(frozen=True)
class Analyzed:
    """What perf_analyzer says of one level, in seconds and pictures a second. It keeps no samples."""

    concurrency: int
    throughput: float
    p50: float
    p90: float
    p99: float

    def series(self) -> Series:
        figures = {name: getattr(self, name) for name in ("throughput", "p50", "p90", "p99")}
        return Series(name=ANALYZED, labels={"concurrency": self.concurrency}, figures=figures)


def fetched(cache: Path) -> Analyzer:
    """Perf_analyzer in `cache`, fetched with pip and apt-get where it is not there. Raises `InputError`."""
    analyzer = Analyzer(cache / "perf_analyzer", cache / "lib")
    if analyzer.binary.exists() and any(analyzer.libraries.glob("libb64*")):
        return analyzer
    try:
        downloads = cache / "downloads"
        analyzer.libraries.mkdir(parents=True, exist_ok=True)
        downloads.mkdir(exist_ok=True)
        for requirement, platform in WHEELS:
            _run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                 f"--platform={platform}", "--python-version=3", "--dest", str(downloads), requirement],
                downloads,
            )  # fmt: skip
        _run(["apt-get", "download", DEBIAN], downloads)
        for package in downloads.glob(f"{DEBIAN}*.deb"):
            _run(["dpkg-deb", "--extract", str(package), str(downloads / "libb64")], downloads)
        for library in downloads.glob("libb64/usr/lib/*/libb64*"):
            (analyzer.libraries / library.name).write_bytes(library.read_bytes())
        for wheel in downloads.glob("*.whl"):
            _unpack(wheel, analyzer)
    except OSError as error:
        raise InputError(f"cannot prepare perf_analyzer in {cache}: {error}; choose another --cache") from error
    analyzer.binary.chmod(0o755)
    return analyzer


def _unpack(wheel: Path, analyzer: Analyzer) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith("/bin/perf_analyzer"):
                analyzer.binary.write_bytes(archive.read(name))
            elif "/libcudart.so" in name:
                (analyzer.libraries / Path(name).name).write_bytes(archive.read(name))


_SENT = ("photo", "ornament", "photo_size", "box", "steps", "seed", "result")


def write_inputs(path: Path, given: Sequence[Case], steps: int | None, manifest: Manifest) -> None:
    """Real pictures for `--input-data`, one entry per case: what our own client sends, less what is the default."""
    entries = []
    for case in given:
        request = read_request(Asked(case.photo, case.ornament, case.box, steps=steps), manifest)
        tensors = call_tensors(request, None, 60.0, manifest.geometry)
        entries.append({name: _described(tensors[name]) for name in _SENT if name in tensors})
    path.write_text(json.dumps({"data": entries}))


def _described(array: Array) -> dict[str, object]:
    if array.dtype == np.uint8:
        return _bytes(array)
    content = [word.decode() if isinstance(word, bytes) else word for word in array.tolist()]
    return {"content": content, "shape": list(array.shape)}


def _bytes(array: Array) -> dict[str, object]:
    return {"content": {"b64": base64.b64encode(np.asarray(array).tobytes()).decode()}, "shape": [int(array.size)]}


def analyzed(
    analyzer: Analyzer,
    url: str,
    inputs: Path,
    concurrency: int,
    requests: int,
    work: Path,
    admin_key: str | None = None,
) -> Analyzed:
    """Run one level of `requests`. Raises `ParureError` with what perf_analyzer said where it fails, or a request does.

    It reads the server's statistics, which a server of parure shows only to holders of its `admin_key`, over HTTP.
    """
    parts = urlsplit(url)
    if admin_key is not None and parts.scheme != "http":
        raise InputError(
            f"perf_analyzer sends the key over HTTP only, and the server's URL is {url}; give http://HOST:PORT"
        )
    table = work / f"perf-{concurrency}.csv"
    table.unlink(missing_ok=True)
    command = [
        str(analyzer.binary), "-m", UNARY_MODEL, "-i", parts.scheme, "-u", f"{parts.hostname}:{parts.port}",
        "--input-data", str(inputs), "--concurrency-range", str(concurrency), "--request-count", str(requests),
        "--percentile", "99", "-f", str(table), *(["-H", f"{ADMIN_HEADER}:{admin_key}"] if admin_key else []),
    ]  # fmt: skip
    said = _run(command, work, analyzer.environment())
    if not table.exists():
        raise ParureError(f"perf_analyzer measured nothing at {url}; it said:\n{said[-2000:]}")
    row = next(csv.DictReader(table.read_text().splitlines()))
    p50, p90, p99 = (float(row[f"{name} latency"]) / 1e6 for name in ("p50", "p90", "p99"))
    return Analyzed(concurrency, float(row["Inferences/Second"]), p50, p90, p99)


def _run(command: Sequence[str], where: Path, environment: dict[str, str] | None = None) -> str:
    """Its output; raises `ParureError` with it where it fails."""
    try:
        done = subprocess.run(
            command, cwd=where, env=environment, capture_output=True, text=True, timeout=_WAIT, check=False
        )
    except FileNotFoundError as error:
        raise InputError(
            f"{command[0]} is not on this machine; perf_analyzer is fetched with pip and apt-get"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ParureError(f"{command[0]} did not end within {_WAIT} s; is the server alive?") from error
    said = done.stdout + done.stderr
    if done.returncode:
        if "restricted" in said:
            raise InputError(
                "the server shows its statistics, which perf_analyzer reads, only to holders of its key; serve with "
                "`parure serve --admin-key KEY`, and give the same --admin-key with its http:// URL"
            )
        raise ParureError(f"{Path(command[0]).name} failed with {done.returncode}:\n{said.strip()[-2000:]}")
    return said
