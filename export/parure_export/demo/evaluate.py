"""Measures a try-on bundle on held-out triplets: masks, and pictures with the mask loop on and off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from parure.geometry import downsample_mask
from parure.tryon import Result, TryOn
from parure_export.demo.dataset import HELD_OUT_SEED
from parure_export.demo.render import KINDS, Triplet, render_triplet


@dataclass(frozen=True)
class Score:
    """One triplet. IoUs are soft (sum of minima over sum of maxima) at the mask's own resolution; PSNR in dB over
    the whole crop, of the composed picture and of the model's bare picture before it is composed."""

    kind: str
    mask_iou: float
    box_iou: float
    psnr_loop: float
    psnr_no_loop: float
    psnr_bare_loop: float
    psnr_bare_no_loop: float


@dataclass(frozen=True)
class Example:
    """A scored triplet with what was made of it."""

    triplet: Triplet
    result: Result
    without_loop: Result
    score: Score


def evaluate(tryon: TryOn, count: int, *, steps: int | None = None, seed: int = 0) -> Iterator[Example]:
    """Score `count` held-out triplets, kinds in turn; every one runs twice, with alpha as trained and alpha = 0."""
    size = tryon.manifest.geometry.size
    for index in range(count):
        triplet = render_triplet(HELD_OUT_SEED + index, KINDS[index % len(KINDS)], size)
        with_loop, without_loop = (
            tryon(triplet.photo, triplet.ornament, triplet.box, steps=steps, seed=seed + index, mask_loop=on)
            for on in (True, False)
        )
        yield Example(triplet, with_loop, without_loop, _score(triplet, with_loop, without_loop))


def summary(scores: list[Score]) -> dict[str, object]:
    """Means over all triplets, and by kind."""
    metrics = [name for name in Score.__annotations__ if name != "kind"]

    def means(chosen: list[Score]) -> dict[str, float]:
        return {name: round(float(np.mean([getattr(s, name) for s in chosen])), 4) for name in metrics}

    kinds = sorted({s.kind for s in scores})
    return {
        "triplets": len(scores),
        **means(scores),
        "by_kind": {kind: means([s for s in scores if s.kind == kind]) for kind in kinds},
        "scores": [asdict(s) for s in scores],
    }


def soft_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Sum of minima over sum of maxima of two masks of one shape, in 0..1."""
    return float(np.minimum(a, b).sum() / max(float(np.maximum(a, b).sum()), 1e-9))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; 100 where they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 100.0 if error == 0 else float(10 * np.log10(255.0**2 / error))


def _score(triplet: Triplet, result: Result, without_loop: Result) -> Score:
    truth = downsample_mask(triplet.wearing_mask, result.box_mask.shape[0])
    bare = [np.rint(r.crop * 255).astype(np.uint8) for r in (result, without_loop)]
    return Score(
        kind=triplet.kind,
        mask_iou=soft_iou(result.masks[-1], truth),
        box_iou=soft_iou(result.box_mask, truth),
        psnr_loop=psnr(np.asarray(result.image), triplet.target),
        psnr_no_loop=psnr(np.asarray(without_loop.image), triplet.target),
        psnr_bare_loop=psnr(bare[0], triplet.target),
        psnr_bare_no_loop=psnr(bare[1], triplet.target),
    )
