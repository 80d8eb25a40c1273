from __future__ import annotations

import base64
import json
import stat
import sys
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from parure.bundle import Bundle
from parure.errors import InputError, ParureError
from parure.geometry import Box
from parure.image import Pixels
from parure_bench.perf_analyzer import Analyzer, analyzed, write_inputs
from parure_bench.serve.inputs import Case

TABLE = "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p99 latency\n2,4.5,10,400000,450000,500000\n"


def stand_in(folder: Path, body: str) -> Analyzer:
    """A program in perf_analyzer's place."""
    binary = folder / "perf_analyzer"
    binary.write_text(f"#!{sys.executable}\nimport sys\narguments = sys.argv[1:]\n{body}\n")
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    return Analyzer(binary, folder)


def test_inputs_are_what_our_own_client_sends(
    tmp_path: Path, photo: Pixels, ornament: Pixels, tiny_bundle: Path
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    write_inputs(tmp_path / "inputs.json", [Case(photo, ornament, Box(1.5, 2, 50, 40))], 4, manifest)
    (entry,) = json.loads((tmp_path / "inputs.json").read_text())["data"]
    content = base64.b64decode(entry["photo"]["content"]["b64"])
    assert Image.open(BytesIO(content)).size == (64, 64) and entry["photo"]["shape"] == [len(content)]
    assert entry["photo_size"] == {"content": [96, 128], "shape": [2]}
    assert entry["box"]["content"] == [1.5, 2, 50, 40] and entry["steps"] == {"content": [4], "shape": [1]}
    assert entry["result"] == {"content": ["crop"], "shape": [1]}


def test_its_table_is_read_in_seconds(tmp_path: Path) -> None:
    analyzer = stand_in(
        tmp_path,
        f"open(arguments[arguments.index('-f') + 1], 'w').write({TABLE!r})\n"
        "assert arguments[arguments.index('-H') + 1] == 'parure:sesame' and '127.0.0.1:8000' in arguments",
    )
    found = analyzed(analyzer, "http://127.0.0.1:8000", tmp_path / "inputs.json", 2, 10, tmp_path, "sesame")
    assert (found.throughput, found.p50, found.p90, found.p99) == (4.5, 0.4, 0.45, 0.5)
    assert found.series().labels == {"concurrency": 2}


def test_what_it_fails_with_is_passed_on(tmp_path: Path) -> None:
    def run(body: str, url: str = "http://127.0.0.1:8000", key: str | None = None) -> None:
        analyzed(stand_in(tmp_path, body), url, tmp_path / "inputs.json", 2, 10, tmp_path, key)

    with pytest.raises(ParureError, match="failed with 99:\nno such model"):
        run("print('no such model'); sys.exit(99)")
    with pytest.raises(InputError, match="only to holders of its key; serve with `parure serve --admin-key KEY`"):
        run("print('This protocol is restricted'); sys.exit(99)")
    with pytest.raises(ParureError, match="measured nothing"):
        run("pass")
    with pytest.raises(InputError, match=r"over HTTP only.*give http://HOST:PORT"):
        run("pass", "grpc://127.0.0.1:8001", "sesame")
