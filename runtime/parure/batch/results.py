"""How each row ended: the results table, written as rows end and put in place whole."""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from parure.batch.jobs import Job, Rejected
from parure.batch.ledger import Record
from parure.batch.store import LocalStore, Store, sync_folder
from parure.batch.tables import TableWriter
from parure.errors import StorageError

NAME = "results.parquet"
_AT_ONCE = 1024
How = Literal["new", "shared", "resumed"]
COLUMNS = {
    "row": "int64",
    "id": "string",
    "key": "string",
    "status": "string",
    "reason": "string",
    "photo": "string",
    "ornament": "string",
    "picture": "string",
    "mask": "string",
    "endpoint": "string",
    "attempts": "int64",
    "seconds": "float64",
    "queue_seconds": "float64",
    "timings": "string",
    "how": "string",
    "ended": "float64",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a row ended. `record` has no key where the inputs could not be read.

    `how`: `new` in this run, `shared` with a row of equal inputs, or `resumed` from an earlier run.
    """

    row: Job | Rejected
    record: Record
    how: How = "new"

    @property
    def status(self) -> str:
        return self.record.status


class Results:
    """Gathers rows; `add` is safe to share between threads."""

    def __init__(self, table: TableWriter) -> None:
        self._table = table
        self._rows: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(self, outcome: Outcome) -> None:
        row, record = outcome.row, outcome.record
        values = {
            "row": row.row,
            "id": row.id,
            "key": record.key or None,
            "status": record.status,
            "reason": record.reason or None,
            "photo": row.photo if isinstance(row, Job) else None,
            "ornament": row.ornament if isinstance(row, Job) else None,
            "picture": record.picture or None,
            "mask": record.mask or None,
            "endpoint": record.endpoint or None,
            "attempts": record.attempts,
            "seconds": record.seconds.get("total"),
            "queue_seconds": record.seconds.get("queue"),
            "timings": json.dumps(dict(record.seconds)) if record.seconds else None,
            "how": outcome.how,
            "ended": record.ended,
        }
        with self._lock:
            self._rows.append(values)

    def flush(self, least: int = _AT_ONCE) -> None:
        """Write what has gathered, if that is `least` rows or more. Always from the same thread."""
        if len(self._rows) < least:
            return
        with self._lock:
            rows, self._rows = self._rows, []
        with _explained():
            self._table.write(rows)


@contextmanager
def results_table(store: Store) -> Iterator[Results]:
    """Gathers rows, and puts the table in place when it is left. Raises `StorageError`."""
    local = isinstance(store, LocalStore)
    folder = store.folder if isinstance(store, LocalStore) else Path(tempfile.gettempdir())
    part = folder / f".{secrets.token_hex(8)}.part"
    try:
        with _explained(), TableWriter(part, COLUMNS) as table:
            gathered = Results(table)
            yield gathered
            gathered.flush(1)
        if not local:
            store.put({NAME: part.read_bytes()})
            return
        with _explained():
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            part.replace(folder / NAME)
            sync_folder(folder)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{NAME} cannot be written ({error.strerror or error})") from error
