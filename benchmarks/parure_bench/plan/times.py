"""Seconds of one execution of a component, by batch size: measured, or from the device's limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from parure.errors import InputError, RecordError
from parure.manifest import Precision
from parure_bench.devices import Device
from parure_bench.record import Record
from parure_bench.roofline import Cost

Samples = tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """Samples by batch size; between measured sizes the medians are interpolated, beyond the last one extended."""

    samples: Mapping[int, Samples]
    _medians: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def median(self, batch: int) -> float:
        if batch not in self._medians:
            self._medians[batch] = self._between(batch)
        return self._medians[batch]

    def _between(self, batch: int) -> float:
        sizes = sorted(self.samples)
        medians = [float(np.median(self.samples[size])) for size in sizes]
        if batch <= sizes[-1]:
            return float(np.interp(batch, sizes, medians))
        if len(sizes) == 1:
            return medians[0] * batch / sizes[0]
        slope = (medians[-1] - medians[-2]) / (sizes[-1] - sizes[-2])
        return medians[-1] + max(slope, 0.0) * (batch - sizes[-1])

    def drawn(self, batch: int, generator: np.random.Generator) -> float:
        """The median times the deviation of a sample of the nearest measured size."""
        nearest = min(self.samples, key=lambda size: abs(size - batch))
        samples = self.samples[nearest]
        if len(samples) == 1:
            return self.median(batch)
        return self.median(batch) * samples[generator.integers(len(samples))] / self.median(nearest)


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


EFFICIENCY = 0.32
"""Share of the roofline that is reached: the best published for SD 1.5's U-Net at batch 1 on an A100."""

SD15 = {
    "vae_encoder": Cost(1_116_658_466_816, 68_297_634, 1_605_632),
    "image_encoder": Cost(162_428_190_720, 607_485_954, 695_808),
    "reference_net": Cost(779_406_868_480, 1_714_031_690, 23_537_152),
    "mask_head": Cost(978_321_408, 241_794, 46_219_264),
    "unet": Cost(1_114_768_670_720, 1_718_959_696, 46_704_130),
    "vae_decoder": Cost(2_514_518_933_504, 98_937_912, 1_605_632),
}
"""As counted in a bundle of SD 1.5 size at 512 x 512 pixels, fp16, raw features, where no bundle is named."""


def roofline_times(
    costs: Mapping[str, Cost], device: Device, precision: Precision, batches: Sequence[int], efficiency: float
) -> Times:
    """Times of a device that nobody has measured yet: its least time divided by `efficiency`."""
    curves = {
        name: Curve({batch: (cost.seconds(device, precision, batch) / efficiency,) for batch in batches})
        for name, cost in costs.items()
    }
    return Times(curves, f"roofline of {device.name} in {precision} at {efficiency:.0%} of it")


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
                way = f"{series.labels.get('backend', '')}:{series.labels.get('precision', '')}"
                by_component = found.setdefault(way, {})
                by_component.setdefault(series.name, {})[int(series.labels["batch"])] = series.samples
    if not found:
        raise RecordError("the records hold no component times by batch size; run `parure bench components` again")
    if backend is not None:
        found = {way: curves for way, curves in found.items() if way.split(":")[0] == backend} or found
        if not any(way.split(":")[0] == backend for way in found):
            raise InputError(f"backend is {backend!r}; the records have {', '.join(sorted(found))}")
    chosen = _fastest(found)
    curves = {name: Curve(samples) for name, samples in found[chosen].items()}
    return Times(curves, f"`parure bench components` on {next(iter(devices))}, {chosen}")


def _fastest(found: Mapping[str, Mapping[str, Mapping[int, Samples]]]) -> str:
    most = max(len(components) for components in found.values())
    whole = [backend for backend, components in found.items() if len(components) == most]
    return min(whole, key=lambda backend: Curve(found[backend].get("unet", {1: (np.inf,)})).median(1))
