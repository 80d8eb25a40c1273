"""Cost against work: steps, batch, and repeats of one ornament, each with its slope."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast, get_args

from rich.progress import Progress

from parure.errors import InputError
from parure_bench.peers import Peer, Setting, Way
from parure_bench.record import Label, Series
from parure_bench.recording import Run
from parure_bench.sampling import Rounds, interleaved
from parure_bench.statistics import line, median
from parure_bench.tensors import random_inputs

Axis = Literal["steps", "batch", "ornament-repeats"]
ONE = {"steps": "step", "batch": "picture in the batch", "ornament-repeats": "picture"}
EACH_STEP = ("reference_net", "mask_head", "unet")
LEAST_POINTS = 3


@dataclass(frozen=True)
class Curve:
    """An axis and its points, in order."""

    axis: Axis
    points: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Curve:
        """`steps=1:50`: 1, 2, 5, 10, 20, 50. Raises `InputError` for another form, and for fewer than 3 points."""
        axis, _, span = text.partition("=")
        low, _, high = span.partition(":")
        if axis not in get_args(Axis) or not low.isdecimal() or not high.isdecimal() or not 0 < int(low) < int(high):
            raise InputError(
                f"curve {text!r} is not of the form AXIS=LOW:HIGH with axis {', '.join(get_args(Axis))} and whole "
                "numbers from 1 on; write for example steps=1:50"
            )
        first, last = int(low), int(high)
        between = {m * 10**e for e in range(len(high)) for m in (1, 2, 5) if first < m * 10**e < last}
        points = tuple(sorted({first, last} | between))
        if len(points) < LEAST_POINTS:
            points = tuple(sorted({*points, (first + last) // 2}))
        if len(points) < LEAST_POINTS:
            raise InputError(f"curve {text!r} has {len(points)} points; a slope needs {LEAST_POINTS}: widen the range")
        return cls(cast(Axis, axis), points)


def measure_curves(
    curves: Sequence[Curve], peer: Peer, setting: Setting, rounds: Rounds, run: Run, bars: Progress
) -> None:
    """Add `curves` of the first way of `peer` to `run`; the ornament's, of a way that has kept none yet."""
    for curve in curves:
        with peer() as ways:
            if curve.axis == "steps":
                curve_of_steps(curve, ways[0], setting, rounds, run, bars)
            elif curve.axis == "batch":
                curve_of_batch(curve, ways[0], rounds, run, bars)
            else:
                curve_of_repeats(curve, ways[0], setting, run, bars)


def curve_of_steps(curve: Curve, way: Way, setting: Setting, rounds: Rounds, run: Run, bars: Progress) -> None:
    """Seconds of a picture by steps."""
    calls = {str(steps): partial(way.make, replace(setting, steps=steps)) for steps in curve.points}
    taken = _interleaved(curve, calls, rounds, bars)
    _add(curve, "picture", {**way.labels, **setting.labels}, taken, run)


def curve_of_batch(curve: Curve, way: Way, rounds: Rounds, run: Run, bars: Progress) -> None:
    """Seconds of what one step computes (ReferenceNet, mask head, U-Net) for a batch of pictures."""
    executor, manifest = way.executor, way.executor.manifest
    if curve.points[-1] > manifest.max_batch:
        raise InputError(
            f"curve batch goes to {curve.points[-1]}, the bundle takes {manifest.max_batch}; make it shorter, or "
            "export with --max-batch"
        )
    inputs = {
        batch: {name: random_inputs(manifest.component(name), batch) for name in EACH_STEP} for batch in curve.points
    }

    def step(batch: int) -> None:
        for name in EACH_STEP:
            executor.run(name, inputs[batch][name])

    taken = _interleaved(curve, {str(batch): partial(step, batch) for batch in curve.points}, rounds, bars)
    labels = {name: label for name, label in way.labels.items() if name not in ("loop", "ornament")}
    _add(curve, "step", labels, taken, run)


def curve_of_repeats(curve: Curve, way: Way, setting: Setting, run: Run, bars: Progress) -> None:
    """Seconds until the n-th picture with one ornament is done, from one run of them; `way` must hold no ornament yet."""
    task = bars.add_task("ornament repeats", total=curve.points[-1])
    taken: dict[int, list[float]] = {}
    started = time.perf_counter()
    for repeat in range(1, curve.points[-1] + 1):
        way.make(setting)
        if repeat in curve.points:
            taken[repeat] = [time.perf_counter() - started]
        bars.advance(task)
    _add(curve, "pictures", {**way.labels, **setting.labels}, taken, run)


def _interleaved(
    curve: Curve, calls: Mapping[str, Callable[[], object]], rounds: Rounds, bars: Progress
) -> dict[int, list[float]]:
    task = bars.add_task(f"by {curve.axis}", total=len(calls) * (rounds.count + rounds.warmup))
    taken: dict[int, list[float]] = {point: [] for point in curve.points}
    for sample in interleaved(calls, rounds, advance=lambda _: bars.advance(task)):
        taken[int(sample.name)].append(sample.seconds)
    return taken


def _add(curve: Curve, name: str, labels: dict[str, Label], taken: dict[int, list[float]], run: Run) -> None:
    """A series for every point, and one more with the slope of the medians through them."""
    shared = {key: value for key, value in labels.items() if key != curve.axis} | {"curve": curve.axis}
    for point, samples in taken.items():
        run.series.append(Series(name=name, labels=shared | {curve.axis: point}, samples=tuple(samples)))
    fitted = line([(float(point), median(samples).value) for point, samples in taken.items()])
    run.series.append(Series(name="slope", labels=shared, unit=f"s per {ONE[curve.axis]}", figures=fitted.figures()))
