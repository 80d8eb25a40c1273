"""What has been done, by key: an append-only journal that survives a kill at any byte.

A line is a checksum and a record. Whatever a kill tore is recognised and dropped, and its job done again. In a folder
the journal is one file, synced at every write; on an object store, which cannot append, every write is an object.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from parure.batch.store import LocalStore, Store
from parure.errors import InputError, StorageError

NAME = "ledger.jsonl"
SEGMENTS = "ledger"
Status = Literal["done", "rejected", "failed"]


@dataclass(frozen=True)
class Record:
    """The end of a job. `done` and `rejected` are final: the same content would end so again; `failed` is not."""

    key: str
    status: Status
    reason: str = ""
    picture: str = ""
    mask: str = ""
    endpoint: str = ""
    attempts: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    ended: float = 0.0

    @property
    def final(self) -> bool:
        return self.status != "failed"


class Journal(Protocol):
    """Where lines go to stay."""

    def write(self, lines: bytes) -> None:
        """When it returns, `lines` are kept for good, or `StorageError` says that none of them is."""

    def close(self) -> None: ...


class Ledger:
    """Safe to share between threads. A context manager.

    Only an index is in memory: 150 bytes for a job. Records of jobs that end together are written together.
    """

    def __init__(self, store: Store) -> None:
        """Reads what earlier runs recorded. Raises `StorageError`."""
        self._places: dict[bytes, int] = {}
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._waiting: list[tuple[bytes, bytes]] = []
        self._asked = self._kept = 0
        self._closed = False
        if isinstance(store, LocalStore):
            self._spool = _open_spool(store.folder / NAME)
            self._journal: Journal = _Synced(self._spool)
        else:
            self._spool = _fetched(store)
            self._journal = _Segments(store, self._spool)
        for offset, record in self._lines():
            self._places[bytes.fromhex(record.key)] = offset

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> Record | None:
        """The last record of `key`."""
        offset = self._places.get(bytes.fromhex(key))
        return None if offset is None else _parse(_line_at(self._spool, offset))

    def append(self, record: Record) -> None:
        """When it returns, the record is kept. Raises `StorageError` where that cannot be."""
        with self._lock:
            self._waiting.append((bytes.fromhex(record.key), _line(record)))
            self._asked = mine = self._asked + 1
        with self._writing:  # whoever comes first writes for all that wait
            if self._closed:  # its handle may already be another file's
                raise StorageError("the batch has ended; nothing more is recorded")
            with self._lock:
                if self._kept >= mine:
                    return
                batch, upto, self._waiting = self._waiting, self._asked, []
            offset = os.fstat(self._spool).st_size
            try:
                self._journal.write(b"".join(line for _, line in batch))
            except BaseException:
                with self._lock:
                    self._waiting = batch + self._waiting
                raise
            for key, line in batch:
                self._places[key] = offset
                offset += len(line)
            self._kept = upto

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing:
            self._closed = True
            self._journal.close()
            os.close(self._spool)

    def _lines(self) -> Iterator[tuple[int, Record]]:
        """Whole records with their offsets."""
        offset = 0
        with os.fdopen(os.dup(self._spool), "rb") as stream:
            stream.seek(0)
            for line in stream:
                if (record := _parse(line)) is not None:
                    yield offset, record
                offset += len(line)


def _open_spool(path: Path) -> int:
    """The journal file, without the torn line at its end."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(
                f"another batch is writing to {path.parent}; wait for it, or choose another --out"
            ) from error
        whole = end = 0
        with os.fdopen(os.dup(handle), "rb") as stream:
            for line in stream:
                end += len(line)
                if _parse(line) is not None:
                    whole = end
        os.ftruncate(handle, whole)
        os.fsync(handle)
    except OSError as error:
        raise StorageError(f"{path} cannot be opened ({error.strerror}); choose another --out") from error
    return handle


def _fetched(store: Store) -> int:
    """A temporary file that holds the journal of an object store."""
    handle, name = tempfile.mkstemp(prefix="parure-ledger-")
    Path(name).unlink()
    for segment in store.names(SEGMENTS):
        content = store.read(f"{SEGMENTS}/{segment}")
        os.write(handle, content if content.endswith(b"\n") or not content else content + b"\n")
    return handle


class _Synced:
    """One file: write, sync; a write that fails half-way is taken back."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def write(self, lines: bytes) -> None:
        end = os.fstat(self._handle).st_size
        try:
            left = memoryview(lines)
            while left:
                left = left[os.pwrite(self._handle, left, end + len(lines) - len(left)) :]
            os.fsync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, end)
            raise StorageError(f"the record of what is done cannot be written ({error.strerror})") from error

    def close(self) -> None:
        pass


class _Segments:
    """An object for every write; closing makes one of them all."""

    def __init__(self, store: Store, spool: int) -> None:
        self._store, self._spool = store, spool
        self._before = store.names(SEGMENTS)
        number = max((int(name.split(".")[0]) for name in self._before if name[:10].isdigit()), default=0)
        self._next = number + 1
        self._written = 0

    def write(self, lines: bytes) -> None:
        name = f"{self._next:010d}.jsonl"
        self._store.put({f"{SEGMENTS}/{name}": lines})
        self._next += 1
        self._before.append(name)
        os.pwrite(self._spool, lines, os.fstat(self._spool).st_size)

    def close(self) -> None:
        """One object is quicker to read next time. The new one comes first, so that nothing is ever missing."""
        if len(self._before) < 2:
            return
        size = os.fstat(self._spool).st_size
        merged = f"{self._next:010d}.jsonl"
        with suppress(StorageError):  # many objects hold as much as one
            self._store.put({f"{SEGMENTS}/{merged}": os.pread(self._spool, size, 0)})
            for name in self._before:
                self._store.remove(f"{SEGMENTS}/{name}")


def _line(record: Record) -> bytes:
    text = json.dumps(vars(record), separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> Record | None:
    """None for a line that is torn or altered."""
    checksum, text = line[:8], line[9:-1]
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        return Record(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _line_at(handle: int, offset: int) -> bytes:
    size = 4096
    while True:
        found = os.pread(handle, size, offset)
        if (end := found.find(b"\n")) >= 0 or len(found) < size:
            return found[: end + 1] if end >= 0 else found
        size *= 4
