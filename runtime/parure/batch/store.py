"""Where results go: a folder, or whatever fsspec reaches. A name holds a whole result, or nothing."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

import stamina

from parure.batch.files import filesystem, is_remote
from parure.errors import InputError, StorageError

_PART = ".part"
_ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}  # an object appears whole, or not at all
_ATTEMPTS = 4


class Store(Protocol):
    """Safe to share between threads. All raise `StorageError`; names are relative, with `/`."""

    where: str

    def put(self, files: Mapping[str, bytes]) -> None:
        """Names appear one after the other, each with all of its content; when it returns, all are there for good."""

    def read(self, name: str) -> bytes: ...

    def exists(self, name: str) -> bool: ...

    def names(self, folder: str) -> list[str]:
        """The names in `folder`, sorted; none where it does not exist."""

    def remove(self, name: str) -> None: ...

    def sweep(self) -> None:
        """Remove what a killed run left half written; nobody else may be writing."""


def open_store(out: str) -> Store:
    """Raises `InputError` for a place that cannot be written to."""
    store = RemoteStore(out) if is_remote(out) and not out.startswith("file://") else LocalStore(out)
    try:
        store.put({".writable": b""})
        store.remove(".writable")
    except StorageError as error:
        raise InputError(f"{error}; choose another --out") from error
    return store


class LocalStore:
    """A folder. Files are written under another name, synced, and renamed."""

    def __init__(self, out: str) -> None:
        self.folder = Path(out.removeprefix("file://")).resolve()
        self.where = str(self.folder)

    def put(self, files: Mapping[str, bytes]) -> None:
        targets = [self.folder / name for name in files]
        parts = [target.parent / f".{secrets.token_hex(8)}{_PART}" for target in targets]
        with _explained(f"{targets[0]} cannot be written"):
            try:
                with ExitStack() as opened:
                    streams = [opened.enter_context(_new(part)) for part in parts]
                    for stream, content in zip(streams, files.values(), strict=True):
                        stream.write(content)
                        stream.flush()
                    for stream in streams:
                        os.fsync(stream.fileno())
                for part, target in zip(parts, targets, strict=True):
                    part.replace(target)
            except BaseException:
                for part in parts:
                    part.unlink(missing_ok=True)
                raise
            for folder in dict.fromkeys(target.parent for target in targets):
                sync_folder(folder)

    def read(self, name: str) -> bytes:
        with _explained(f"{self.folder / name} cannot be read"):
            return (self.folder / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def names(self, folder: str) -> list[str]:
        with _explained(f"{self.folder / folder} cannot be listed"):
            try:
                return sorted(entry.name for entry in (self.folder / folder).iterdir())
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        with _explained(f"{self.folder / name} cannot be removed"):
            (self.folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        for folder in (".", *(path.name for path in self.folder.iterdir() if path.is_dir())):
            for name in self.names(folder):
                if name.startswith(".") and name.endswith(_PART):
                    self.remove(f"{folder}/{name}")


class RemoteStore:
    """Object stores take a whole object at once; elsewhere it is uploaded under another name and moved."""

    def __init__(self, url: str) -> None:
        self._files, path = filesystem(url)
        self._path = path.rstrip("/")
        self.where = url.rstrip("/")
        self._atomic = url.split("://")[0] in _ATOMIC

    def put(self, files: Mapping[str, bytes]) -> None:
        for name, content in files.items():
            with _explained(f"{self.where}/{name} cannot be written"):
                for attempt in stamina.retry_context(on=_transient, attempts=_ATTEMPTS, wait_initial=0.1, wait_max=2.0):
                    with attempt:
                        self._put(f"{self._path}/{name}", content)

    def _put(self, target: str, content: bytes) -> None:
        if self._atomic:
            self._files.pipe_file(target, content)
            return
        folder = target.rsplit("/", 1)[0]
        self._files.makedirs(folder, exist_ok=True)
        part = f"{folder}/.{secrets.token_hex(8)}{_PART}"
        self._files.pipe_file(part, content)
        self._files.mv(part, target)

    def read(self, name: str) -> bytes:
        with _explained(f"{self.where}/{name} cannot be read"):
            return bytes(self._files.cat_file(f"{self._path}/{name}"))

    def exists(self, name: str) -> bool:
        with _explained(f"{self.where}/{name} cannot be looked for"):
            return bool(self._files.isfile(f"{self._path}/{name}"))

    def names(self, folder: str) -> list[str]:
        with _explained(f"{self.where}/{folder} cannot be listed"):
            try:
                found = self._files.ls(f"{self._path}/{folder}", detail=False)
            except FileNotFoundError:
                return []
            return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in found)

    def remove(self, name: str) -> None:
        with _explained(f"{self.where}/{name} cannot be removed"):
            self._files.rm_file(f"{self._path}/{name}")

    def sweep(self) -> None:
        for folder in () if self._atomic else ("pictures", "masks", "ledger"):
            for name in self.names(folder):
                if name.startswith(".") and name.endswith(_PART):
                    self.remove(f"{folder}/{name}")


def _new(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def sync_folder(folder: Path) -> None:
    """A rename lasts only once its folder is synced, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _transient(error: Exception) -> bool:
    return not isinstance(error, FileNotFoundError | PermissionError | NotImplementedError)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever a filesystem raises, and fsspec's raise of all kinds, is a `StorageError` here."""
    try:
        yield
    except Exception as error:
        why = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
        raise StorageError(f"{what} ({why})") from error
