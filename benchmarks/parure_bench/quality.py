"""Quality against speed: every mode on held-out triplets, its seconds beside exact's, and what it costs in fidelity.

Modes are the subject. Fewer steps and other solvers save time as well, but they change what exact means: they are
measured in the same rounds, and told as what they are by the label `axis`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from parure.errors import InputError
from parure.geometry import downsample_mask
from parure.manifest import Manifest
from parure.modes import EXACT, PRESETS, Mode, has_deep, read_mode
from parure.tryon import Result, TryOn
from parure_bench.record import Number, Series
from parure_bench.sampling import Rounds, Sample, interleaved
from parure_bench.statistics import Estimate, paired_ratio
from parure_export.demo.dataset import HELD_OUT_SEED
from parure_export.demo.evaluate import psnr, soft_iou
from parure_export.demo.render import KINDS, Triplet, render_triplet

AIM_SPEED, AIM_PSNR = 2.0, 35.0
PICTURE = "picture"
SETTINGS = ("mask=2", "mask=5", "deep=2", "deep=3", "deep=5", "hold=2", "hold=3", "guidance=0.75", "guidance=0.5")
FEWER = (0.75, 0.5)  # shares of the default steps
OTHER_SOLVER = "dpmpp-2m"
UNITS = {
    "psnr_exact": "dB", "psnr_crop_exact": "dB", "ssim_exact": "similarity", "mask_iou_exact": "similarity",
    "psnr_truth": "dB", "mask_iou_truth": "similarity",
}  # fmt: skip
_KINDS_OF_CALLS = ("unet", "unet_shallow", "reference_net", "mask_head")


@dataclass(frozen=True)
class Way:
    """One way to make a picture; `axis` is what it changes: mode, steps or solver."""

    axis: str
    mode: str
    steps: int
    solver: str

    @property
    def labels(self) -> dict[str, str | int | float]:
        return {"axis": self.axis, "mode": self.mode, "steps": self.steps, "solver": self.solver}


@dataclass(frozen=True)
class Found:
    """A way's pictures: seconds and fidelity by triplet, calls of a picture, and `speed`, exact's seconds over its own."""

    way: Way
    seconds: Sequence[float]
    fidelity: Mapping[str, Sequence[float]]
    calls: Mapping[str, int]
    speed: Estimate
    frontier: bool = False

    @property
    def psnr(self) -> float:
        """Mean over the triplets, of the whole picture against exact's."""
        return float(np.mean(self.fidelity["psnr_exact"]))

    @property
    def meets_aim(self) -> bool:
        return self.speed.value >= AIM_SPEED and self.psnr >= AIM_PSNR


def ways(manifest: Manifest, modes: Sequence[str] = ()) -> Iterator[Way]:
    """Exact first, then `modes`, by default every preset and every setting alone, then fewer steps and a solver.

    Of the default modes those that the bundle cannot run are left out; raises `RequestError` for others.
    """
    steps, solver = manifest.loop.default_steps, manifest.loop.default_solver
    yield Way("mode", str(EXACT), steps, solver)
    chosen = [str(read_mode(text, manifest)) for text in modes]
    for text in chosen or (*PRESETS, *SETTINGS):
        if text != str(EXACT) and (has_deep(manifest) or Mode.parse(text).deep == 1):
            yield Way("mode", text, steps, solver)
    if modes:
        return
    fewer = sorted({max(1, round(share * steps)) for share in FEWER} - {steps}, reverse=True)
    for count in fewer:
        yield Way("steps", str(EXACT), count, solver)
    if solver != OTHER_SOLVER and any(spec.name == OTHER_SOLVER for spec in manifest.solvers):
        for count in (steps, *fewer):
            yield Way("solver", str(EXACT), count, OTHER_SOLVER)


class Tally:
    """What the rounds have found so far, by way; the first way is exact."""

    def __init__(self, chosen: Sequence[Way]) -> None:
        if len(set(chosen)) < len(chosen):
            raise InputError("a mode is named twice; drop the repetition")
        self.ways = tuple(chosen)
        self._seconds: dict[Way, list[float]] = {way: [] for way in chosen}
        self._fidelity: dict[Way, dict[str, list[float]]] = {way: defaultdict(list) for way in chosen}
        self._calls: dict[Way, dict[str, int]] = {}

    def add(self, triplet: Triplet, made: Mapping[Way, Sample]) -> None:
        """One triplet's pictures in every way."""
        exact = _result(made[self.ways[0]])
        scores = {way: score(triplet, _result(sample), exact) for way, sample in made.items()}
        for way, sample in made.items():
            self._seconds[way].append(sample.seconds)
            self._calls[way] = _result(sample).calls
            for metric, value in scores[way].items():
                self._fidelity[way][metric].append(value)

    def found(self) -> list[Found]:
        """Empty before the first triplet."""
        exact = self._seconds[self.ways[0]]
        return with_frontier(
            Found(way, seconds, self._fidelity[way], self._calls[way], paired_ratio(exact, seconds))
            for way, seconds in self._seconds.items()
            if seconds
        )


def measure(tryon: TryOn, tally: Tally, triplets: int, advance: Callable[[str], None] = lambda name: None) -> None:
    """Make every one of `triplets` held-out pictures in every way, in turns, into `tally`.

    Ornaments are in the cache before they are timed, so that every way pays for the loop alone.
    """
    size = tryon.manifest.geometry.size
    drawn = [render_triplet(HELD_OUT_SEED + i, KINDS[i % len(KINDS)], size) for i in range(triplets)]
    for triplet in drawn:
        tryon(triplet.photo, triplet.ornament, triplet.box, steps=1)
    calls = {str(i): partial(next, _pictures(tryon, way, drawn)) for i, way in enumerate(tally.ways)}
    samples = interleaved(calls, Rounds(triplets, warmup=1), advance=advance)
    for triplet in drawn:
        turn = islice(samples, len(calls))
        tally.add(triplet, {tally.ways[int(sample.name)]: sample for sample in turn})


def score(triplet: Triplet, result: Result, exact: Result) -> dict[str, float]:
    """Fidelity of one picture: PSNR in dB and SSIM of the whole picture, PSNR of the model's bare crop, IoU of masks."""
    from skimage.metrics import structural_similarity

    picture, expected = np.asarray(result.image), np.asarray(exact.image)
    truth = downsample_mask(triplet.wearing_mask, result.box_mask.shape[0])
    return {
        "psnr_exact": psnr(picture, expected),
        "psnr_crop_exact": psnr(_bytes(result.crop), _bytes(exact.crop)),
        "ssim_exact": float(structural_similarity(picture, expected, channel_axis=2)),
        "mask_iou_exact": soft_iou(result.masks[-1], exact.masks[-1]),
        "psnr_truth": psnr(picture, triplet.target),
        "mask_iou_truth": soft_iou(result.masks[-1], truth),
    }


def with_frontier(given: Iterable[Found]) -> list[Found]:
    """The same, those marked than which no other is both at least as fast and at least as near to exact."""
    found = list(given)

    def beaten(one: Found) -> bool:
        place = (one.speed.value, one.psnr)
        others = ((other.speed.value, other.psnr) for other in found if other is not one)
        return any(there[0] >= place[0] and there[1] >= place[1] and there != place for there in others)

    return [replace(one, frontier=not beaten(one)) for one in found]


def series(found: Found) -> Iterator[Series]:
    """The picture's seconds with all means beside them, and each fidelity by triplet."""
    figures: dict[str, Number] = {
        "speed": found.speed.value, "speed_low": found.speed.low, "speed_high": found.speed.high,
        "pareto": float(found.frontier), "meets_aim": float(found.meets_aim),
        "psnr_exact_least": min(found.fidelity["psnr_exact"]),
        **{metric: float(np.mean(found.fidelity[metric])) for metric in UNITS},
        **{f"calls_{part}": float(found.calls.get(part, 0)) for part in _KINDS_OF_CALLS},
    }  # fmt: skip
    yield Series(name=PICTURE, labels=found.way.labels, samples=tuple(found.seconds), figures=figures)
    for metric, unit in UNITS.items():
        yield Series(name=metric, labels=found.way.labels, unit=unit, samples=tuple(found.fidelity[metric]))


def verdict(found: Sequence[Found]) -> str:
    """Whether a mode reaches the aim, in one sentence."""
    if not found:
        return "nothing was measured"
    aim = f"a mode {AIM_SPEED:g} x faster than exact at {AIM_PSNR:g} dB"
    met = [f for f in found if f.meets_aim and f.way.axis == "mode"]
    if not met:
        return f"the aim, {aim}, is not met"
    fastest = max(met, key=lambda f: f.speed.value)
    return (
        f"the aim, {aim}, is met by {', '.join(f.way.mode for f in met)}; the fastest, {fastest.way.mode}, is "
        f"{fastest.speed.value:.2f} x faster at {fastest.psnr:.1f} dB"
    )


def _pictures(tryon: TryOn, way: Way, triplets: Sequence[Triplet]) -> Iterator[Result]:
    """The first triplet twice: its first picture warms up."""
    for index, triplet in enumerate((triplets[0], *triplets)):
        yield tryon(
            triplet.photo, triplet.ornament, triplet.box, mode=way.mode, steps=way.steps, solver=way.solver,
            seed=max(index - 1, 0),
        )  # fmt: skip


def _result(sample: Sample) -> Result:
    assert isinstance(sample.result, Result)
    return sample.result


def _bytes(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.rint(picture * 255).astype(np.uint8)
    return pixels
