"""The least time that a device can take: operations and bytes of the graphs against its peak and its bandwidth.

A component cannot be quicker than its operations at the peak, nor than its bytes at the full bandwidth. Counted are
products of matrices (`parure_export.graph_flops`), the weights, once a call, and the tensors that enter and leave the
graph. What a graph moves inside is not: kernels may fuse it away, and a lower bound must let them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from parure.bundle import Bundle
from parure.manifest import FeatureLayout, Precision
from parure_bench.devices import Device
from parure_bench.record import Label, Series
from parure_bench.tensors import boundary_bytes

SIZES = {Precision.FP32: 4, Precision.FP16: 2, Precision.BF16: 2}


@dataclass(frozen=True)
class Cost:
    """Of one component: operations and bytes at the graph's boundary of one sample, bytes of its weights."""

    flops: int
    weight_bytes: int
    boundary_bytes: int

    def compute_seconds(self, device: Device, precision: Precision, batch: int) -> float:
        return self.flops * batch / device.peak(precision)

    def memory_seconds(self, device: Device, batch: int) -> float:
        return (self.weight_bytes + self.boundary_bytes * batch) / device.bandwidth

    def seconds(self, device: Device, precision: Precision, batch: int) -> float:
        return max(self.compute_seconds(device, precision, batch), self.memory_seconds(device, batch))


Costs = Mapping[str, Cost]


def count(bundle: Bundle, precision: Precision) -> dict[str, Cost]:
    """What every component of `bundle` costs; bytes as if all of it were of `precision`."""
    stored = bundle.manifest.precision
    scale = SIZES[precision] / SIZES[stored]
    weights = _weight_bytes(bundle)
    tensors = scale if stored is not Precision.BF16 else SIZES[precision] / 4  # bf16 bundles exchange float32
    return {
        c.name: Cost(c.flops, round(weights[c.name] * scale), round(boundary_bytes(c) * tensors))
        for c in bundle.manifest.components
    }


def _weight_bytes(bundle: Bundle) -> dict[str, int]:
    """As the export's report counted them; without one, parameters times the size of one."""
    file = "reports/graphs.json"
    if file in bundle.manifest.files:
        report = json.loads((bundle.root / file).read_bytes())
        return {name: int(graph["bytes"]) for name, graph in report.items()}
    return {c.name: c.parameters * SIZES[bundle.manifest.precision] for c in bundle.manifest.components}


@dataclass(frozen=True)
class Calls:
    """`times` calls of a component with `batch` samples of one picture each; `looped`: inside the loop."""

    component: str
    times: int
    batch: int = 1
    looped: bool = True


@dataclass(frozen=True)
class Rung:
    """One way to make a picture; each rung of the ladder saves what `saved` says on top of those before it."""

    saved: str
    exact: bool
    calls: tuple[Calls, ...]
    costs: Costs

    def flops(self) -> int:
        return sum(self.costs[c.component].flops * c.times * c.batch for c in self.calls)

    def bytes(self) -> int:
        costs = ((self.costs[c.component], c) for c in self.calls)
        return sum((cost.weight_bytes + cost.boundary_bytes * c.batch) * c.times for cost, c in costs)

    def seconds(self, device: Device, precision: Precision, batch: int, *, looped: bool = False) -> float:
        """Of one picture among `batch` that run together; with `looped` of the loop alone."""
        return sum(
            self.costs[c.component].seconds(device, precision, c.batch * batch) * c.times / batch
            for c in self.calls
            if c.looped or not looped
        )


def ladder(costs: Costs, layout: FeatureLayout, steps: int, guided: bool, element: int) -> list[Rung]:
    """From papers' code, which saves nothing, to all that can be saved; a feature takes `element` bytes."""
    raw = costs if layout.form == "raw" else _converted(costs, layout, element, projected=False)
    ahead = costs if layout.form == "projected" else _converted(costs, layout, element, projected=True)
    unet = Calls("unet", steps * 2 if guided else steps)
    together = Calls("unet", steps, 2 if guided else 1)
    step = (Calls("mask_head", steps), Calls("reference_net", steps))
    ornament = (
        Calls("vae_encoder", 1, looped=False),
        Calls("image_encoder", 1, looped=False),
        Calls("reference_net", 1, looped=False),
    )
    ends = (Calls("vae_encoder", 1, looped=False), Calls("vae_decoder", 1, looped=False))
    every = (Calls("mask_head", steps), Calls("reference_net", steps, 2), unet)
    rungs = [
        Rung("nothing: both references at every step", True, (*ends, *ornament[:2], *every), raw),
        Rung("ornament features once a picture", True, (*ends, *ornament, *step, unet), raw),
        Rung("ornament kept between pictures", True, (*ends, *step, unet), raw),
        Rung("keys and values projected ahead", True, (*ends, *step, unet), ahead),
    ]
    if guided:
        rungs.append(Rung("both passes of guidance in one batch", True, (*ends, *step, together), ahead))
    settled = (*ends, Calls("mask_head", 1), Calls("reference_net", 1), together)
    return [*rungs, Rung("mask settled after one step", False, settled, ahead)]


@dataclass(frozen=True)
class Projection:
    """What it takes to have keys and values ahead: operations of one reference picture, elements L of both forms."""

    flops: int
    raw: int
    projected: int

    @classmethod
    def of(cls, layout: FeatureLayout) -> Projection:
        """Keys and values are two products [tokens, channels] x [channels, channels] a layer; what the mask head
        reads stays raw, beside them."""
        pairs = layout.form == "projected"
        head = set(layout.mask_head_layers)
        layers = [layer for layer in layout.layers if not (pairs and layer.layer in head)]
        sides = [(layer.tokens, layer.channels // 2 if pairs else layer.channels) for layer in layers]
        raw = sum(tokens * channels for tokens, channels in sides)
        kept = sum(layer.tokens * layer.channels for layer in layout.layers if layer.layer in head)
        return cls(sum(4 * tokens * channels**2 for tokens, channels in sides), raw, 2 * raw + kept)


def _converted(costs: Costs, layout: FeatureLayout, element: int, *, projected: bool) -> dict[str, Cost]:
    """The costs on features of the other form: projections of both pictures leave the U-Net for ReferenceNet, or come
    back, and features of `element` bytes get longer or shorter."""
    projection, sign = Projection.of(layout), 1 if projected else -1
    moved, grown = sign * projection.flops, sign * (projection.projected - projection.raw) * element

    def changed(name: str, flops: int, features: int) -> Cost:
        cost = costs[name]
        return replace(cost, flops=cost.flops + flops, boundary_bytes=cost.boundary_bytes + features * grown)

    return {
        **costs,
        "unet": changed("unet", -2 * moved, 2),
        "reference_net": changed("reference_net", moved, 1),
        "mask_head": changed("mask_head", 0, 2),
    }


def roofline(
    bundle: Bundle, device: Device, precision: Precision, batch: int, steps: int, guided: bool
) -> list[Series]:
    """Figures of every component, and of step and picture on every rung of the ladder; there are no samples."""
    costs = count(bundle, precision)
    labels: dict[str, Label] = {"device": device.name, "precision": str(precision), "batch": batch}
    series = [
        Series(
            name=name,
            labels=labels,
            figures={
                "flops": cost.flops * batch,
                "weight_bytes": cost.weight_bytes,
                "boundary_bytes": cost.boundary_bytes * batch,
                "compute_seconds": cost.compute_seconds(device, precision, batch),
                "memory_seconds": cost.memory_seconds(device, batch),
                "bound_seconds": cost.seconds(device, precision, batch),
            },
        )
        for name, cost in costs.items()
    ]
    for rung in ladder(costs, bundle.manifest.features, steps, guided, SIZES[precision]):
        shared = labels | {"steps": steps, "saved": rung.saved, "exact": "yes" if rung.exact else "no"}
        looped = rung.seconds(device, precision, batch, looped=True)
        whole = rung.seconds(device, precision, batch)
        counted = {"flops": float(rung.flops()), "bytes": float(rung.bytes()), "bound_seconds": whole}
        series.append(Series(name="picture", labels=shared, figures=counted))
        series.append(Series(name="step", labels=shared, figures={"bound_seconds": looped / steps}))
    return series
