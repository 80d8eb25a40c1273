"""A record: one versioned JSON file with everything that one measuring command found, raw samples included."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from parure.errors import RecordError
from parure.manifest import Frozen, first_fault
from parure_bench.environment import Environment, GpuState

RECORD_VERSION: Literal[1] = 1
Kind = Literal["components", "loop", "serve", "roofline", "quality", "plan"]
Label = str | int | float
Number = Annotated[float, Field(allow_inf_nan=False)]
SECONDS = "s"


class Series(Frozen):
    """One thing measured under one set of conditions.

    `name` is what (`unet`, `picture`, `request`), `labels` under which conditions (batch, precision, backend, steps,
    concurrency), and both together tell series of two records to be the same. `samples` are raw, in `unit`, in the
    order in which they were taken; `figures` are single numbers beside them (flops, peak_bytes, slope).
    """

    name: str
    labels: dict[str, Label] = Field(default={})
    unit: str = SECONDS
    samples: tuple[Number, ...] = ()
    figures: dict[str, Number] = Field(default={})

    @property
    def key(self) -> tuple[str, tuple[tuple[str, Label], ...]]:
        return self.name, tuple(sorted(self.labels.items()))

    @property
    def title(self) -> str:
        """Name and labels, for people: `unet (batch 4, precision fp16)`."""
        labels = ", ".join(f"{name} {value}" for name, value in self.labels.items())
        return f"{self.name} ({labels})" if labels else self.name


class Span(Frozen):
    """A part of one request: `start` and `seconds` since the request began."""

    name: str
    start: Number
    seconds: Number


class Record(Frozen):
    """What a measuring command found. `incomplete` says why a run was cut short; what it had measured is here."""

    schema_version: Literal[1] = RECORD_VERSION
    kind: Kind
    command: str
    started: str = Field(description="UTC, ISO 8601")
    environment: Environment
    gpus_after: tuple[GpuState, ...] = Field(default=(), description="the same GPUs once the run is over, still warm")
    series: tuple[Series, ...]
    timeline: tuple[Span, ...] = Field(default=(), description="the parts of one request, in their order")
    notes: tuple[str, ...] = ()
    incomplete: str | None = None

    def find(self, name: str, **labels: Label) -> tuple[Series, ...]:
        """The series of `name` that have at least these labels."""
        return tuple(s for s in self.series if s.name == name and labels.items() <= s.labels.items())


def load_record(path: Path) -> Record:
    """Read a record; raises `RecordError` for what is missing, empty, foreign, or of another schema version."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(
            f"cannot read record {path}: {error.strerror}; name a file that `parure bench` wrote"
        ) from error
    if not content.strip():
        raise RecordError(f"record {path} is empty; the run that should have written it did not; measure again")
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise RecordError(f"{path} is not JSON ({error}); expected a record that `parure bench` wrote") from error
    if not isinstance(raw, dict) or not {"schema_version", "kind", "series"} <= raw.keys():
        raise RecordError(f"{path} is JSON, but no record of `parure bench`; name a file that it wrote")
    if raw["schema_version"] != RECORD_VERSION:
        raise RecordError(
            f"record {path} has schema version {raw['schema_version']!r}; this parure reads version {RECORD_VERSION}; "
            "measure again with this version, or use the parure that wrote it"
        )
    try:
        return Record.model_validate_json(content)
    except ValidationError as error:
        raise RecordError(f"record {path}: {first_fault(error)}; measure again") from error


def save_record(path: Path, record: Record) -> None:
    """Write a record whole or not at all. Raises `RecordError` where the file cannot be written."""
    check_place(path)
    partial = _partial(path)
    try:
        partial.write_text(record.model_dump_json(indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RecordError(f"cannot write record {path}: {error.strerror}; choose another --out") from error


def check_place(path: Path) -> None:
    """Raises `RecordError` where no record can be written to `path`: better before a long run than after it."""
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise RecordError(f"cannot write record {path}: {error.strerror}; choose another --out") from error
    if path.is_dir():
        raise RecordError(f"cannot write record {path}: it is a folder; name a file with --out")


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
