"""The job file: a row per picture, in Parquet, JSONL or CSV, read as a stream. A bad row is data, not an error."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from parure.batch.files import is_remote, open_binary
from parure.batch.tables import count_rows, parquet_rows
from parure.errors import InputError
from parure.request import SEED_LIMIT

REQUIRED = ("photo", "ornament", "box")
SIDES = ("left", "top", "right", "bottom")
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_ROW_LIMIT = 1 << 20  # bytes of a line

Four = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to make. Paths are whole: relative ones count from the folder of the job file. None: the bundle's."""

    row: int
    photo: str
    ornament: str
    box: Four
    ornament_mask: str | None = None
    seed: int = 0
    steps: int | None = None
    solver: str | None = None
    guidance: float | None = None
    mode: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that names no picture that could be made, and why."""

    row: int
    id: str | None
    reason: str


class _Wrong(Exception):
    """What is wrong with a row."""


def read_jobs(source: str) -> Iterator[Job | Rejected]:
    """The rows of the file at `source`, a path or a URL, numbered from 0.

    Of rows with the same id, only those that say the same as the first are accepted. Raises `InputError` for a file
    that cannot be read at all, or lacks a column.
    """
    whole = source if is_remote(source) else str(Path(source).absolute())
    folder, first = posixpath.dirname(whole), _FirstOfTheirId()
    for row, values in enumerate(_rows(source)):
        if isinstance(values, str):
            yield Rejected(row, None, values)
        else:
            yield first.check(_read(row, values, folder))


def count_jobs(source: str) -> int:
    """How many rows `read_jobs` will give, by a quick look: for text, how many lines hold something."""
    if _kind(source) == "parquet":
        return count_rows(source)
    with open_binary(source, "job file") as stream:
        lines = sum(1 for line in stream if line.strip())
    return max(lines - (_kind(source) == "csv"), 0)


def _kind(source: str) -> str:
    name = source.lower().removesuffix(".gz")
    for ending, kind in ((".parquet", "parquet"), (".jsonl", "jsonl"), (".ndjson", "jsonl"), (".csv", "csv")):
        if name.endswith(ending):
            return kind
    raise InputError(f"job file {source!r} ends in none of .parquet, .jsonl, .csv; rename it, or write one of these")


def _rows(source: str) -> Iterator[Mapping[str, Any] | str]:
    """Each row as values by column, or as the reason why it cannot be read."""
    kind = _kind(source)
    if kind == "parquet":
        yield from parquet_rows(source, REQUIRED)
        return
    with open_binary(source, "job file") as stream:
        if kind == "jsonl":
            yield from (_json_row(line) for line in _lines(stream) if line.strip())
        else:
            yield from _csv_rows(source, TextIOWrapper(stream, "utf-8-sig", errors="replace", newline=""))


def _lines(stream: Any) -> Iterator[bytes]:
    """Lines; of one that is far too long only the beginning, so that it cannot fill the memory."""
    while line := stream.readline(_ROW_LIMIT):
        whole = line.endswith(b"\n")
        while not whole and (rest := stream.readline(_ROW_LIMIT)):
            whole = rest.endswith(b"\n")
        yield line


def _json_row(line: bytes) -> Mapping[str, Any] | str:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"the line is not JSON ({error}); expected an object with {', '.join(REQUIRED)}"
    if not isinstance(values, dict):
        return f"the line is JSON of another kind, {line[:40]!r}; expected an object with {', '.join(REQUIRED)}"
    return values


def _csv_rows(source: str, text: TextIOWrapper) -> Iterator[Mapping[str, Any] | str]:
    reader = csv.DictReader(text)
    if missing := [name for name in REQUIRED if name not in (reader.fieldnames or ())]:
        raise InputError(
            f"job file {source!r} has no column {', '.join(missing)}; its first line must name the columns, "
            f"{', '.join(REQUIRED)} among them"
        )
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"the line cannot be read ({error})"
            continue
        too_many = values.pop(None, None)  # where DictReader keeps what has no column
        yield f"the line has {len(too_many)} fields too many; put quotes around the box" if too_many else values


def _read(row: int, values: Mapping[str, Any], folder: str) -> Job | Rejected:
    name: str | None = None
    try:
        name = _id(values.get("id"))
        return Job(
            row=row,
            photo=_path(values, "photo", folder) or _missing("photo"),
            ornament=_path(values, "ornament", folder) or _missing("ornament"),
            box=_box(values.get("box")),
            ornament_mask=_path(values, "ornament_mask", folder),
            seed=_whole(values, "seed", 0, SEED_LIMIT - 1) or 0,
            steps=_whole(values, "steps", 1, 2**31 - 1),
            solver=_text(values, "solver"),
            guidance=_number(values, "guidance"),
            mode=_text(values, "mode"),
            id=name,
        )
    except _Wrong as wrong:
        return Rejected(row, name, str(wrong))


def _absent(value: Any) -> bool:
    """None, an empty field of a CSV file, or the NaN that pandas writes for either."""
    return value is None or (isinstance(value, str) and not value.strip()) or (value != value and value is not None)


def _missing(name: str) -> Any:
    raise _Wrong(f"{name} is missing; expected a path or a URL")


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if _absent(value):
        return None
    if not isinstance(value, str) or "\0" in value:
        raise _Wrong(f"{name} is {_shown(value)}; expected text")
    return value


def _path(values: Mapping[str, Any], name: str, folder: str) -> str | None:
    path = _text(values, name)
    return path if path is None or "://" in path else posixpath.join(folder, path)


def _id(value: Any) -> str | None:
    if _absent(value):
        return None
    name = str(value) if isinstance(value, int) else value
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise _Wrong(
            f"id is {_shown(value)}; expected up to 128 letters, digits, '.', '_' or '-', not beginning with '.'"
        )
    return name


def _number(values: Mapping[str, Any], name: str) -> float | None:
    value: Any = values.get(name)
    if _absent(value):
        return None
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not math.isfinite(number) or number < 0:
        raise _Wrong(f"{name} is {_shown(value)}; expected a finite number from 0 on")
    return number


def _whole(values: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value: Any = values.get(name)
    if _absent(value):
        return None
    try:
        number = int(value) if not isinstance(value, float) or value.is_integer() else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        raise _Wrong(f"{name} is {_shown(value)}; expected a whole number from {least} to {most}")
    return number


def _box(value: Any) -> Four:
    """From `l,t,r,b`, a list, or an object with the sides' names."""
    sides = value.split(",") if isinstance(value, str) else value
    if isinstance(sides, Mapping):
        sides = [sides.get(side) for side in SIDES]
    try:
        left, top, right, bottom = (float(side) for side in sides)
    except (TypeError, ValueError, OverflowError) as error:
        raise _Wrong(
            f"box is {_shown(value)}; expected four numbers, left, top, right, bottom, in photo pixels"
        ) from error
    return left, top, right, bottom


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


class _FirstOfTheirId:
    """Outputs are named by id: the first row that has one keeps it."""

    def __init__(self) -> None:
        self._content: dict[str, int] = {}

    def check(self, job: Job | Rejected) -> Job | Rejected:
        if isinstance(job, Rejected) or job.id is None:
            return job
        digest = hashlib.blake2b(repr(astuple(replace(job, row=0))).encode(), digest_size=8).digest()
        content = int.from_bytes(digest, "little")
        if self._content.setdefault(job.id, content) == content:
            return job
        return Rejected(job.row, job.id, f"id {job.id!r} belongs to an earlier row that asks for another picture")
