"""Shared memory that a server on this host maps too, a region at a time. Here: system memory, in /dev/shm.

Not `multiprocessing.shared_memory`, nor `tritonclient.utils.shared_memory`, which is a wrapper of it: its regions are
sparse, so that a full /dev/shm kills the process by SIGBUS at the first write; it cannot be closed while an array
still looks at it; and it needs a process of its own to tidy up. Here pages are claimed when a region is made, a
mapping ends with the last array on it, and a lock that the kernel drops with its owner tells whether a region is in
use, however its owner ended, and across the process namespaces of containers.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import secrets
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from parure.executor import Array
from parure.triton_regions import Kind, RegionApi

FOLDER = Path("/dev/shm")
PREFIX = "parure-"
POISON = 0xFF  # filled with it, every float16 and float32 is NaN


class Buffer(Protocol):
    """A region while it is lent."""

    @property
    def root(self) -> object:
        """Lives as long as any array on the region."""

    def poison(self) -> None:
        """Make every number NaN, so that what a server does not write cannot pass for its reply."""

    def write(self, array: Array) -> None:
        """Copy `array` to the beginning of the region."""

    def tensor(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        """The beginning of the region, read-only."""


class Region(Protocol):
    """`size` bytes that a server can map under `name`."""

    kind: Kind
    name: str
    size: int

    def register(self, api: RegionApi, timeout: float) -> None:
        """Tell the server of this region."""

    def lend(self) -> Buffer:
        """Access to the bytes."""

    def offset(self, array: Array) -> int | None:
        """Where in the region `array` lies, whole and contiguous; None where it does not."""

    def release(self) -> None:
        """Free what can be freed while arrays are still on the region; they stay valid."""


@dataclass(frozen=True)
class Place:
    """Where a tensor of a call lies: `size` bytes of `region` from `offset`."""

    region: Region
    offset: int
    size: int
    buffer: Buffer

    def tensor(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        """What the server wrote. Raises ValueError unless it is as many bytes as it was asked for."""
        if (size := math.prod(shape) * np.dtype(dtype).itemsize) != self.size:
            raise ValueError(f"{size} bytes in shared memory, expected {self.size}")
        return self.buffer.tensor(dtype, shape)


class SystemRegion:
    """A file that carries this process's id, that only its user may open, and that goes with this object.

    Raises `OSError` where there is no room for it.
    """

    kind: Kind = "system"

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        path = FOLDER / self.name
        unnamed = path.with_name(f".{path.name}")  # until it is locked, so that no `sweep` takes it for a stale one
        descriptor = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        self._release = weakref.finalize(self, _release, path, descriptor, os.getpid())
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(path)
            os.posix_fallocate(descriptor, 0, size)
            self._memory = mmap.mmap(descriptor, size)
        except BaseException:
            self.release()
            raise
        self._start = _address(np.frombuffer(self._memory, np.uint8))

    def register(self, api: RegionApi, timeout: float) -> None:
        api.register_system(self.name, f"/{self.name}", self.size, timeout)

    def lend(self) -> HostBuffer:
        return HostBuffer(np.frombuffer(self._memory, np.uint8))

    def offset(self, array: Array) -> int | None:
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            return None
        offset = _address(array) - self._start
        return offset if 0 <= offset <= self.size - array.nbytes else None

    def release(self) -> None:
        """Removes the file."""
        self._release()


class HostBuffer:
    """`root` is the whole region as uint8: what numpy makes the base of every array on it."""

    def __init__(self, root: Array) -> None:
        self.root = root

    def poison(self) -> None:
        self.root.fill(POISON)

    def write(self, array: Array) -> None:
        self.root[: array.nbytes].view(array.dtype).reshape(array.shape)[...] = array

    def tensor(self, dtype: Any, shape: tuple[int, ...]) -> Array:
        array: Array = self.root[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
        array.flags.writeable = False
        return array


def sweep() -> None:
    """Remove the regions of processes that ended without doing so."""
    for path in FOLDER.glob(f"{PREFIX}*"):
        if not in_use(path.name):
            path.unlink(missing_ok=True)


def in_use(name: str) -> bool:
    """Whether the region `name` is there and its owner lives. True also for one that this user may not open."""
    try:
        descriptor = os.open(FOLDER / name, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _release(path: Path, descriptor: int, owner: int) -> None:
    """A forked child shares the descriptor, and leaves the file to its parent."""
    if os.getpid() == owner:
        for name in (path, path.with_name(f".{path.name}")):
            with suppress(OSError):
                name.unlink()
    os.close(descriptor)
