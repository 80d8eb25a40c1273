"""Rendered triplets on disk: shards of uint8 arrays, drawn in parallel and resumable."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from parure_export.demo.render import KINDS, Triplet, render_triplet

SHARD = 500
HELD_OUT_SEED = 10_000_000  # training seeds stay below it


@dataclass(frozen=True)
class Batch:
    """Triplets as arrays: pictures uint8 [N, S, S, 3], masks uint8 [N, S, S] (0..255), kinds [N]."""

    photo: NDArray[np.uint8]
    target: NDArray[np.uint8]
    ornament: NDArray[np.uint8]
    wearing_mask: NDArray[np.uint8]
    reference_mask: NDArray[np.uint8]
    box_mask: NDArray[np.uint8]
    kind: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.kind)

    def part(self, items: slice) -> Batch:
        return Batch(**{name: getattr(self, name)[items] for name in self.__annotations__})


def box_coverage(box: tuple[float, float, float, float], size: int) -> NDArray[np.float32]:
    """The share of each pixel that `box` (left, top, right, bottom) covers: [size, size] in 0..1."""
    edges = np.arange(size)
    left, top, right, bottom = box
    columns = np.clip(np.minimum(edges + 1, right) - np.maximum(edges, left), 0, 1)
    rows = np.clip(np.minimum(edges + 1, bottom) - np.maximum(edges, top), 0, 1)
    covered: NDArray[np.float32] = np.outer(rows, columns).astype(np.float32)
    return covered


def stack(triplets: list[Triplet]) -> Batch:
    """Triplets of one size -> arrays."""

    def quantised(masks: list[NDArray[np.float32]]) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = np.rint(np.stack(masks) * 255).astype(np.uint8)
        return pixels

    size = triplets[0].photo.shape[0]
    return Batch(
        photo=np.stack([t.photo for t in triplets]),
        target=np.stack([t.target for t in triplets]),
        ornament=np.stack([t.ornament for t in triplets]),
        wearing_mask=quantised([t.wearing_mask for t in triplets]),
        reference_mask=quantised([t.reference_mask for t in triplets]),
        box_mask=quantised([box_coverage(t.box, size) for t in triplets]),
        kind=np.array([KINDS.index(t.kind) for t in triplets], np.uint8),
    )


def held_out(count: int, size: int) -> Batch:
    """`count` triplets that training never sees, all kinds in turn."""
    return stack([render_triplet(HELD_OUT_SEED + i, KINDS[i % len(KINDS)], size) for i in range(count)])


def render_shards(folder: Path, count: int, size: int, workers: int) -> Iterator[int]:
    """Draw triplets 0..count-1 into `folder`; yields how many there are. Shards that exist are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, SHARD)
    with ProcessPoolExecutor(workers) as pool:
        for done, _ in enumerate(
            pool.map(_render_shard, [folder] * len(starts), starts, [size] * len(starts)), start=1
        ):
            yield min(done * SHARD, count)


def load_shards(folder: Path, count: int) -> Batch:
    """The first `count` triplets of `folder`, in memory."""
    shards = [load_shard(folder, start) for start in range(0, count, SHARD)]
    return Batch(**{n: np.concatenate([getattr(s, n) for s in shards])[:count] for n in Batch.__annotations__})


def load_shard(folder: Path, start: int) -> Batch:
    """The shard whose first triplet is `start`."""
    with np.load(_path(folder, start), allow_pickle=False) as arrays:
        return Batch(**{name: arrays[name] for name in Batch.__annotations__})


def _path(folder: Path, start: int) -> Path:
    return folder / f"triplets-{start:07d}.npz"


def _render_shard(folder: Path, start: int, size: int) -> None:
    path = _path(folder, start)
    if path.exists():
        return
    batch = stack([render_triplet(seed, size=size) for seed in range(start, start + SHARD)])
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **{name: getattr(batch, name) for name in Batch.__annotations__})
    partial.rename(path)
