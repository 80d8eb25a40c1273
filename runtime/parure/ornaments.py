"""The ornament cache: tokens and features of an ornament are computed once, and kept within a bound of bytes."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from parure.image import Mask, Pixels
from parure.loop import Ornament

KEPT_BYTES = 1 << 30
Compute = Callable[[], Ornament]


class OrnamentCache:
    """Least recently used ornaments go first. Safe to share between threads.

    Single flight: of several that ask for one ornament at once, one computes it and the others wait for it.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        """`limit` bounds the bytes that are kept; 0 keeps nothing, and what is larger is not kept."""
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self._kept: OrderedDict[str, Ornament] = OrderedDict()
        self._underway: dict[str, Future[Ornament]] = {}
        self._lock = threading.Lock()

    def get(self, key: str, compute: Compute) -> Ornament:
        """The ornament of `key`, by `compute` where it is not kept. What `compute` raises fails this caller only."""
        while True:
            with self._lock:
                if key in self._kept:
                    self.hits += 1
                    self._kept.move_to_end(key)
                    return self._kept[key]
                underway = self._underway.get(key)
                if underway is None:
                    self.misses += 1
                    mine = self._underway[key] = Future()
                    break
            if underway.exception() is None:
                with self._lock:
                    self.hits += 1
                return underway.result()
        return self._computed(key, compute, mine)

    def _computed(self, key: str, compute: Compute, mine: Future[Ornament]) -> Ornament:
        try:
            ornament = compute()
        except BaseException as error:
            with self._lock:
                del self._underway[key]
            mine.set_exception(error)  # whoever waits looks again, and one of them computes
            raise
        with self._lock:
            del self._underway[key]
            self._keep(key, ornament)
        mine.set_result(ornament)
        return ornament

    def _keep(self, key: str, ornament: Ornament) -> None:
        if ornament.nbytes > self.limit:
            return
        self._kept[key] = ornament
        self.bytes += ornament.nbytes
        while self.bytes > self.limit:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.nbytes


def ornament_key(bundle: str, ornament: Pixels, mask: Mask | None) -> str:
    """By content: the bundle's identity, the picture's pixels, and the mask's values."""
    digest = hashlib.sha256(f"{bundle} {ornament.shape} {mask is not None}".encode())
    digest.update(ornament.tobytes())
    if mask is not None:
        digest.update(mask.tobytes())
    return digest.hexdigest()
