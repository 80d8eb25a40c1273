"""Job files: every format says the same, and a bad row is a rejected row with its reason."""

from __future__ import annotations

import csv
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from parure.batch.jobs import Job, Rejected, count_jobs, read_jobs
from parure.errors import InputError

ROWS: list[dict[str, Any]] = [
    {"photo": "a.png", "ornament": "/o/ring.png", "box": [1.5, 2, 30, 40], "seed": 2**63, "id": "one"},
    {"photo": "s3://bucket/b.png", "ornament": "r.png", "box": [1, 2, 3, 4], "steps": 7, "guidance": 2.5, "solver": "ddim", "mode": "fast"},
]  # fmt: skip
COLUMNS = ("photo", "ornament", "box", "ornament_mask", "seed", "steps", "solver", "guidance", "mode", "id")


def written(folder: Path, kind: str) -> Path:
    path = folder / f"jobs.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows([row | {"box": ",".join(map(str, row["box"]))} for row in ROWS])
    else:
        seeds = pyarrow.array([row.get("seed") for row in ROWS], pyarrow.uint64())
        columns = {name: [row.get(name) for row in ROWS] for name in COLUMNS} | {"seed": seeds}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_every_format_gives_the_same_jobs(kind: str, tmp_path: Path) -> None:
    path = str(written(tmp_path, kind))
    first = Job(0, f"{tmp_path}/a.png", "/o/ring.png", (1.5, 2, 30, 40), seed=2**63, id="one")
    second = Job(
        1, "s3://bucket/b.png", f"{tmp_path}/r.png", (1, 2, 3, 4), steps=7, solver="ddim", guidance=2.5, mode="fast"
    )
    assert list(read_jobs(path)) == [first, second]
    assert count_jobs(path) == 2


GOOD = {"photo": "p.png", "ornament": "o.png", "box": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ({"photo": None}, "photo is missing"),
        ({"photo": float("nan")}, "photo is missing"),
        ({"photo": 7}, "photo is 7"),
        ({"photo": "a\0b"}, "photo is"),
        ({"box": [1, 2, 3]}, "box is"),
        ({"box": "here"}, "box is 'here'"),
        ({"box": None}, "box is None"),
        ({"box": {"left": 1}}, "box is"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": True}, "steps is True"),
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"guidance": "strong"}, "guidance is 'strong'"),
        ({"id": "../up"}, "id is '../up'"),
        ({"id": ".hidden"}, "id is"),
        ({"solver": 3}, "solver is 3"),
    ],
)
def test_a_bad_row_is_rejected_with_a_reason_and_the_next_is_read(line: Any, words: str, tmp_path: Path) -> None:
    text = line if isinstance(line, str) else json.dumps(GOOD | line)
    (tmp_path / "jobs.jsonl").write_text(f"{text}\n{json.dumps(GOOD)}\n")
    bad, good = read_jobs(str(tmp_path / "jobs.jsonl"))
    assert isinstance(bad, Rejected) and words in bad.reason
    assert isinstance(good, Job) and good.row == 1


def test_bytes_that_are_no_text_and_endless_lines_are_rejected(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    (tmp_path / "jobs.jsonl").write_bytes(b"\xff\xfe\n" + b"x" * 3_000_000 + b"\n" + good + b"\n")
    assert [type(row) for row in read_jobs(str(tmp_path / "jobs.jsonl"))] == [Rejected, Rejected, Job]


def test_csv_with_an_unquoted_box_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "jobs.csv").write_text("photo,ornament,box\np.png,o.png,1,2,3,4\n")
    (row,) = read_jobs(str(tmp_path / "jobs.csv"))
    assert isinstance(row, Rejected) and "quotes around the box" in row.reason


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "jobs.parquet"
    rows = [GOOD | {"photo": f"{i}.png"} for i in range(30)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=10, compression="gzip")
    start = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xee" * 40
    path.write_bytes(content)
    found = list(read_jobs(str(path)))
    assert [row.row for row in found if isinstance(row, Rejected)] == list(range(10, 20))
    assert all("row group 1" in row.reason for row in found if isinstance(row, Rejected)) and len(found) == 30


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("jobs.txt", "", "ends in none of"),
        ("jobs.csv", "photo,box\n", "has no column ornament"),
        ("jobs.parquet", "PAR1 not really", "is no Parquet file"),
        ("missing.jsonl", None, "cannot be opened"),
    ],
)
def test_a_file_that_is_no_job_file_is_an_input_error(
    name: str, content: str | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=words):
        list(read_jobs(str(tmp_path / name)))


def test_the_first_row_keeps_its_id_and_only_its_equals_may_share_it(tmp_path: Path) -> None:
    lines = [GOOD | {"id": "x"}, GOOD | {"id": "x"}, GOOD | {"id": "x", "seed": 5}]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [type(row) for row in read_jobs(str(tmp_path / "jobs.jsonl"))] == [Job, Job, Rejected]


def test_job_files_are_read_through_fsspec_and_packed(tmp_path: Path) -> None:
    import gzip

    import fsspec

    text = (json.dumps(GOOD) + "\n").encode()
    with fsspec.open("memory://jobs-test/jobs.jsonl", "wb") as stream:
        stream.write(text)
    (tmp_path / "jobs.jsonl.gz").write_bytes(gzip.compress(text))
    (remote,) = read_jobs("memory://jobs-test/jobs.jsonl")
    (packed,) = read_jobs(str(tmp_path / "jobs.jsonl.gz"))
    assert isinstance(remote, Job) and remote.photo == "memory://jobs-test/p.png"
    assert isinstance(packed, Job) and packed.photo == f"{tmp_path}/p.png"


def test_job_files_are_read_over_http_whose_streams_know_fewer_ways_to_read(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    for kind in ("jsonl", "csv"):
        written(tmp_path, kind)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_address[1]}"
        for kind in ("jsonl", "csv"):
            first, second = read_jobs(f"{at}/jobs.{kind}")
            assert isinstance(first, Job) and first.photo == f"{at}/a.png" and isinstance(second, Job)
            assert count_jobs(f"{at}/jobs.{kind}") == 2
        server.shutdown()
