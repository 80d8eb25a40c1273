"""What the server loop counts, on Triton's own metrics endpoint; every family carries the label `model`."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

OUTCOMES = ("made", "cancelled", "refused", "full", "failed")
SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
FAMILIES = {
    "parure_pictures_total": ("COUNTER", "Pictures by outcome"),
    "parure_steps_total": ("COUNTER", "Denoising steps"),
    "parure_mask_refreshes_total": ("COUNTER", "Times that the wearing mask was predicted anew"),
    "parure_ornament_cache_total": ("COUNTER", "Ornaments looked up, by result: hit or miss"),
    "parure_ornament_cache_bytes": ("GAUGE", "Bytes of ornaments that are kept"),
    "parure_pictures_at_work": ("GAUGE", "Pictures that the loop is working on"),
    "parure_pictures_waiting": ("GAUGE", "Pictures in the queue"),
    "parure_part_seconds": ("HISTOGRAM", "Seconds of one call, by part of the work"),
    "parure_picture_seconds": ("HISTOGRAM", "Seconds from a picture's arrival to its end, by outcome"),
}


class Metrics:
    """Safe to share between threads: Triton 2.51 itself crashes where two threads report at once."""

    def __init__(self, model: str, parts: Sequence[str]) -> None:
        self._lock = threading.Lock()
        self._families = {
            name: pb_utils.MetricFamily(name=name, description=text, kind=getattr(pb_utils.MetricFamily, kind))
            for name, (kind, text) in FAMILIES.items()
        }
        self._model = model
        self._metrics: dict[tuple[str, str], Any] = {}
        self._told = {"hit": 0, "miss": 0}
        for outcome in OUTCOMES:
            self._metric("parure_pictures_total", outcome=outcome)
            self._metric("parure_picture_seconds", outcome=outcome)
        for part in parts:
            self._metric("parure_part_seconds", part=part)
        for result in self._told:
            self._metric("parure_ornament_cache_total", result=result)
        for name, (kind, _) in FAMILIES.items():
            if name in ("parure_steps_total", "parure_mask_refreshes_total") or kind == "GAUGE":
                self._metric(name)

    def step(self) -> None:
        with self._lock:
            self._metric("parure_steps_total").increment(1)

    def places(self, at_work: int, waiting: int) -> None:
        with self._lock:
            self._metric("parure_pictures_at_work").set(at_work)
            self._metric("parure_pictures_waiting").set(waiting)

    def ended(self, outcome: str, since_arrival: float, seconds: Mapping[str, Sequence[float]]) -> None:
        """A picture has ended; `seconds` of every call, by part."""
        with self._lock:
            self._metric("parure_pictures_total", outcome=outcome).increment(1)
            self._metric("parure_picture_seconds", outcome=outcome).observe(since_arrival)
            for part, values in seconds.items():
                for value in values:
                    self._metric("parure_part_seconds", part=part).observe(value)
            if refreshes := len(seconds.get("mask_head", ())):
                self._metric("parure_mask_refreshes_total").increment(refreshes)

    def ornaments(self, hits: int, misses: int, kept: int) -> None:
        """What the cache has counted since it was made, and the bytes that it keeps."""
        with self._lock:
            for result, count in (("hit", hits), ("miss", misses)):
                if count > self._told[result]:
                    self._metric("parure_ornament_cache_total", result=result).increment(count - self._told[result])
                    self._told[result] = count
            self._metric("parure_ornament_cache_bytes").set(kept)

    def _metric(self, name: str, **labels: str) -> Any:
        key = (name, str(labels))
        if key not in self._metrics:
            more = {"buckets": SECONDS} if FAMILIES[name][0] == "HISTOGRAM" else {}
            self._metrics[key] = self._families[name].Metric(labels={"model": self._model, **labels}, **more)
        return self._metrics[key]
