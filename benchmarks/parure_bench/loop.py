"""Whole pictures: every way to make one in turns, with the time of each component call and of what is around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import cast

import numpy as np
from rich.progress import Progress

from parure.errors import ParureError
from parure.executor import FloatArray
from parure_bench.own_process import in_own_process
from parure_bench.peers import Peer, Picture, Setting, Way
from parure_bench.record import Label, Series
from parure_bench.recording import Run
from parure_bench.sampling import Rounds, interleaved
from parure_bench.statistics import paired_ratio, ratio

EQUAL_DB = 100.0
SHARE = "share"  # unit of parts of a whole


def measure_loop(
    peers: Sequence[Peer], settings: Sequence[Setting], rounds: Rounds, run: Run, bars: Progress,
    *, apart: bool = False,
) -> None:  # fmt: skip
    """Add the series of every way and setting to `run`, and the timeline of one picture.

    All peers take turns; with `apart` one comes after the other, each in a process of its own, for models of which
    memory holds only one.
    """
    references: dict[Setting, FloatArray] = {}
    if not apart:
        _measure_together(peers, settings, rounds, references, run, bars)
    else:
        run.notes.append("backends were measured one after the other, not in turns")
        for peer in peers:
            _measure_apart(peer, settings, rounds, references, run, bars)
    _add_speedups(run, paired=not apart)


def _measure_apart(
    peer: Peer, settings: Sequence[Setting], rounds: Rounds, references: dict[Setting, FloatArray], run: Run,
    bars: Progress,
) -> None:  # fmt: skip
    """As `_measure_together`, in a process of its own."""
    task = bars.add_task("in a process of its own", total=None)
    found, made, error = in_own_process(_alone, peer, settings, rounds, references)
    bars.remove_task(task)
    references.update(made)
    run.series += found.series
    run.timeline = run.timeline or found.timeline
    if error is not None:
        raise error


def _alone(
    peer: Peer, settings: Sequence[Setting], rounds: Rounds, references: dict[Setting, FloatArray]
) -> tuple[Run, dict[Setting, FloatArray], ParureError | None]:
    """What was found, also where it ends with an error."""
    run = Run()
    try:
        with Progress(disable=True) as bars:
            _measure_together([peer], settings, rounds, references, run, bars)
    except ParureError as error:
        return run, references, error
    return run, references, None


def _measure_together(
    peers: Sequence[Peer], settings: Sequence[Setting], rounds: Rounds, references: dict[Setting, FloatArray],
    run: Run, bars: Progress,
) -> None:  # fmt: skip
    """`references` are the first pictures that were made, by setting; all others are compared with them."""
    with ExitStack() as stack:
        ways = {str(way.labels): way for peer in peers for way in stack.enter_context(peer())}
        for setting in settings:
            fitting = {name: way for name, way in ways.items() if way.fits(setting)}
            task = bars.add_task(
                ", ".join(f"{name} {value}" for name, value in setting.labels.items()),
                total=len(fitting) * (rounds.count + rounds.warmup),
            )
            taken = Taken(fitting, setting, references)
            try:
                for sample in interleaved(
                    {name: partial(way.make, setting) for name, way in fitting.items()},
                    rounds, advance=lambda _, task=task: bars.advance(task),  # type: ignore[misc]
                ):  # fmt: skip
                    taken.add(sample.name, sample.seconds, cast(Picture, sample.result))
            finally:
                run.series += taken.series()
            if not run.timeline:
                run.timeline += taken.last[next(iter(ways))].spans


class Taken:
    """The pictures of one setting as they come, and the series that they make."""

    def __init__(self, ways: Mapping[str, Way], setting: Setting, references: dict[Setting, FloatArray]) -> None:
        self.ways, self.setting, self._references = ways, setting, references
        self.last: dict[str, Picture] = {}
        self._seconds: dict[str, list[float]] = {name: [] for name in ways}
        self._parts: dict[str, dict[str, list[float]]] = {name: {} for name in ways}

    def add(self, way: str, seconds: float, picture: Picture) -> None:
        self._seconds[way].append(seconds)
        parts = self._parts[way]
        for span in picture.spans:
            parts.setdefault(span.name, []).append(span.seconds)
        for part, value in picture.parts.items():
            parts.setdefault(part, []).append(value)
        if picture.spans:
            components = sum(span.seconds for span in picture.spans)
            parts.setdefault("outside components", []).append((seconds - components) / seconds)
            rest = seconds - components - sum(picture.parts.values())
            parts.setdefault("loop overhead", []).append(rest / seconds)
        self.last[way] = picture
        if way == next(iter(self.ways)):
            self._references.setdefault(self.setting, picture.crop)

    def series(self) -> list[Series]:
        """A `picture` for every way that made one, and a series for each of its parts."""
        found = []
        reference = self._references.get(self.setting)
        for name, way in self.ways.items():
            if not self._seconds[name] or reference is None:
                continue
            labels: dict[str, Label] = {**way.labels, **self.setting.labels}
            figures = {"psnr_db": psnr(self.last[name].crop, reference)}
            found.append(Series(name="picture", labels=labels, samples=tuple(self._seconds[name]), figures=figures))
            pictures = len(self._seconds[name])
            for part, samples in self._parts[name].items():
                unit = SHARE if part in ("outside components", "loop overhead") else "s"
                calls = {"calls_per_picture": len(samples) / pictures}
                found.append(Series(name=part, labels=labels, unit=unit, samples=tuple(samples), figures=calls))
        return found


def psnr(picture: FloatArray, reference: FloatArray) -> float:
    """dB between pictures in 0..1; 100 where they are equal."""
    error = float(np.mean((picture.astype(np.float64) - reference) ** 2))
    return EQUAL_DB if error == 0 else min(EQUAL_DB, -10 * float(np.log10(error)))


def _add_speedups(run: Run, *, paired: bool) -> None:
    """Every picture's gain over the naive loop of the same setting, PyTorch's where it was measured."""
    judge = paired_ratio if paired else ratio
    for index, series in enumerate(run.series):
        baseline = _baseline(run.series, series)
        if series.name != "picture" or baseline is None:
            continue
        count = min(len(baseline.samples), len(series.samples))
        found = judge(baseline.samples[:count], series.samples[:count])
        gain = {"speedup": found.value, "speedup_low": found.low, "speedup_high": found.high}
        run.series[index] = series.model_copy(update={"figures": series.figures | gain})


def _baseline(all_series: Sequence[Series], series: Series) -> Series | None:
    setting = ("steps", "solver", "guidance", "mask")
    naive = [
        other
        for other in all_series
        if other.name == "picture"
        and other.labels.get("loop") == "naive"
        and all(other.labels[name] == series.labels.get(name) for name in setting)
    ]
    return next((other for other in naive if other.labels["backend"] == "torch"), next(iter(naive), None))
