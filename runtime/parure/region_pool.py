"""The regions of one executor: made when needed, registered once, lent, used again, bounded in bytes."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from parure.errors import DeadlineExceeded, ServerUnavailable
from parure.executor import Array
from parure.regions import Place, Region

CLOSE_SECONDS = 1.0  # for what a server is told on the way out
_RETRY_SECONDS = 0.01


class Registrar(Protocol):
    """Tells a server of regions. `until` is a time of `time.monotonic`."""

    def register(self, region: Region, until: float) -> None:
        """Raises `ServerError`."""

    def unregister(self, region: Region, until: float) -> bool:
        """Whether the server has forgotten the region, which it does not while a call uses it.

        Raises `ServerUnavailable` and `DeadlineExceeded` where no server is heard.
        """


class RegionPool:
    """Lends regions, each until the last array on it is gone. Safe to share between threads."""

    def __init__(self, limit: int, make: Callable[[int], Region], registrar: Registrar) -> None:
        """`make` makes a region of a size, or raises `OSError`; all of them have at most `limit` bytes."""
        self._limit = limit
        self._make = make
        self._registrar = registrar
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}
        self._idle: list[Region] = []
        self._doubtful: list[Region] = []
        self._returned: deque[Region] = deque()  # finalizers append to it, in any thread, whatever is locked
        self._bytes = 0
        self._owner = os.getpid()

    def lend(self, size: int, until: float) -> Place | None:
        """`size` bytes; None where the limit is reached or the host has no room. Raises `ServerError`."""
        region = self._reuse(size) or self._grow(size, until)
        if region is None:
            return None
        buffer = region.lend()
        weakref.finalize(buffer.root, self._returned.append, region).atexit = False
        return Place(region, 0, size, buffer)

    def find(self, array: Array) -> Place | None:
        """Where `array` lies, if that is in a region of this pool."""
        with self._lock:
            regions = list(self._regions.values())
        for region in regions:
            if (offset := region.offset(array)) is not None:
                return Place(region, offset, array.nbytes, region.lend())
        return None

    def doubt(self, regions: Iterable[Region]) -> None:
        """These may still be written to by a server that was not heard: used again only once it forgot them."""
        with self._lock:
            for region in regions:
                if self._regions.pop(region.name, None) is not None:
                    region.release()
                    self._doubtful.append(region)

    def close(self) -> None:
        """Have the server forget all regions, and remove them; arrays on them stay valid. May be called again."""
        if os.getpid() != self._owner:
            return  # a forked child's copy
        with self._lock:
            regions = [*self._regions.values(), *self._doubtful]
            self._regions.clear()
            self._doubtful.clear()
            self._idle.clear()
            self._bytes = 0
        for region in regions:
            region.release()
        until = time.monotonic() + CLOSE_SECONDS
        try:
            while regions := [region for region in regions if not self._registrar.unregister(region, until)]:
                time.sleep(_RETRY_SECONDS)  # a server counts a call a moment longer than its reply takes
        except (ServerUnavailable, DeadlineExceeded):
            return  # what a server keeps of them goes with the server, or when the next client sweeps

    def _reuse(self, size: int) -> Region | None:
        """The smallest idle region that holds `size` bytes, and is not twice as large."""
        with self._lock:
            while self._returned:
                if (region := self._returned.popleft()).name in self._regions:
                    self._idle.append(region)
            fitting = [region for region in self._idle if size <= region.size < 2 * size]
            if not fitting:
                return None
            smallest = min(fitting, key=lambda region: region.size)
            self._idle.remove(smallest)
            return smallest

    def _grow(self, size: int, until: float) -> Region | None:
        if not self._reserve(size, until):
            return None
        region = None
        try:
            region = self._make(size)
            self._registrar.register(region, until)
        except OSError:
            self._free(size)
            return None
        except BaseException:
            self._free(size)
            if region is not None:
                region.release()
            raise
        with self._lock:
            self._regions[region.name] = region
        return region

    def _reserve(self, size: int, until: float) -> bool:
        """Whether there is room for `size` bytes, if need be in place of idle and doubtful regions."""
        if size > self._limit:
            return False
        with self._lock:
            excess = self._bytes + size - self._limit
            dropped: list[Region] = []
            while self._idle and excess > sum(region.size for region in dropped):
                dropped.append(self._idle.pop(0))
        self.doubt(dropped)
        self._settle(until)
        with self._lock:
            if self._bytes + size > self._limit:
                return False
            self._bytes += size
        return True

    def _settle(self, until: float) -> None:
        """Ask about doubtful regions; those that the server has forgotten are gone."""
        with self._lock:
            doubtful, self._doubtful = self._doubtful, []
        for region in doubtful:
            try:
                forgotten = self._registrar.unregister(region, until)
            except (ServerUnavailable, DeadlineExceeded):
                forgotten = False
            if forgotten:
                self._free(region.size)
            else:
                with self._lock:
                    self._doubtful.append(region)

    def _free(self, size: int) -> None:
        with self._lock:
            self._bytes -= size
