"""Seconds of one execution of a component, by batch size: measured, or from the device's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from parure.errors import InputError, RecordError
from parure_bench.record import Record

Samples = tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Samples by batch size; between measured sizes the medians are interpolated, beyond the last one extended."""

    samples: Mapping[int, Samples]

    def median(self, batch: int) -> float:
        sizes = sorted(self.samples)
        medians = [float(np.median(self.samples[size])) for size in sizes]
        if batch <= sizes[-1] or len(sizes) == 1:
            below = medians[0] * (batch / sizes[-1] if batch > sizes[-1] else 1)
            return float(np.interp(batch, sizes, medians)) if batch <= sizes[-1] else below
        slope = (medians[-1] - medians[-2]) / (sizes[-1] - sizes[-2])
        return medians[-1] + max(slope, 0.0) * (batch - sizes[-1])

    def drawn(self, batch: int, generator: np.random.Generator) -> float:
        """The median times the deviation of a sample of the nearest measured size."""
        nearest = min(self.samples, key=lambda size: abs(size - batch))
        samples = self.samples[nearest]
        if len(samples) == 1:
            return self.median(batch)
        return self.median(batch) * samples[generator.integers(len(samples))] / float(np.median(samples))


@dataclass(frozen=True)
class Times:
    """Of every component; `source` says where they come from, for people."""

    curves: Mapping[str, Curve]
    source: str

    @property
    def largest_batch(self) -> int:
        """The largest that every component has been measured at."""
        return min(max(curve.samples) for curve in self.curves.values())

    def require(self, components: set[str]) -> None:
        """Raises `RecordError` for components without a time."""
        if missing := sorted(components - self.curves.keys()):
            raise RecordError(
                f"{self.source} says nothing of {', '.join(missing)}; the plan needs every component; run "
                "`parure bench components` with all of them"
            )


@dataclass(frozen=True)
class Work:
    """What one sample costs, and what is read once for a whole batch."""

    flops: float
    weight_bytes: float
    sample_bytes: float = 0.0


@dataclass(frozen=True)
class Limits:
    """FLOP/s and bytes/s that a device can reach, and the share of them that kernels really do."""

    name: str
    flops: float
    bandwidth: float
    efficiency: float

    def seconds(self, work: Work, batch: int) -> float:
        computing = work.flops * batch / self.flops
        moving = (work.weight_bytes + work.sample_bytes * batch) / self.bandwidth
        return max(computing, moving) / self.efficiency


def roofline_times(works: Mapping[str, Work], limits: Limits, batches: tuple[int, ...], source: str) -> Times:
    """Times of a device that nobody has measured yet."""
    curves = {
        name: Curve({batch: (limits.seconds(work, batch),) for batch in batches}) for name, work in works.items()
    }
    return Times(curves, source)


def measured_times(records: list[Record], backend: str | None = None) -> Times:
    """From records of `parure bench components`, all of one device. Raises `RecordError`, `InputError`.

    `backend` chooses where a record holds several; without it, the one that has every component and is the fastest.
    """
    for record in records:
        if record.kind != "components":
            raise RecordError(
                f"a record of kind {record.kind} was given for component times; expected one of `parure bench components`"
            )
    if len(devices := {record.environment.device for record in records}) > 1:
        raise RecordError(f"the records are of different devices ({', '.join(sorted(devices))}); give those of one")
    found: dict[str, dict[str, dict[int, Samples]]] = {}
    for record in records:
        for series in record.series:
            if "batch" in series.labels and series.samples and series.unit == "s":
                by_component = found.setdefault(str(series.labels.get("backend", "")), {})
                by_component.setdefault(series.name, {})[int(series.labels["batch"])] = series.samples
    if not found:
        raise RecordError("the records hold no component times by batch size; run `parure bench components` again")
    if backend is not None and backend not in found:
        raise InputError(f"backend is {backend!r}; the records have {', '.join(sorted(found))}")
    chosen = backend if backend is not None else _fastest(found)
    curves = {name: Curve(samples) for name, samples in found[chosen].items()}
    return Times(curves, f"`parure bench components` on {next(iter(devices))}" + (f", {chosen}" if chosen else ""))


def _fastest(found: Mapping[str, Mapping[str, Mapping[int, Samples]]]) -> str:
    most = max(len(components) for components in found.values())
    whole = [backend for backend, components in found.items() if len(components) == most]
    return min(whole, key=lambda backend: Curve(found[backend].get("unet", {1: (np.inf,)})).median(1))
