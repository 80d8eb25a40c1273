"""Real pictures as a loop's inputs: what parity is measured on, and what previews are fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from parure.geometry import downsample_mask, to_model
from parure_export.demo.dataset import HELD_OUT_SEED, box_coverage
from parure_export.demo.render import render_triplet
from parure_export.reference_loop import LoopInputs


@dataclass(frozen=True)
class SampleShape:
    """The sizes that inputs must have: S, s, latent channels, P, and the pixels' normalisation."""

    size: int
    latent_size: int
    latent_channels: int
    pixels: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]


def sample_inputs(shape: SampleShape, count: int, first_seed: int = HELD_OUT_SEED + 5_000_000) -> LoopInputs:
    """`count` rendered triplets on real photographs, with noise from fixed seeds."""
    crops, ornaments, pixels, boxes, noises = [], [], [], [], []
    for index in range(count):
        triplet = render_triplet(first_seed + index, size=shape.size)
        box = box_coverage(triplet.box, shape.size)
        crops.append(to_model(triplet.photo.astype(np.float32) / 255) * (1 - box))
        ornament = to_model(triplet.ornament.astype(np.float32) / 255)
        ornaments.append(ornament)
        pixels.append(_pixels(torch.from_numpy(ornament), shape))
        boxes.append(downsample_mask(box, shape.latent_size)[None, None])
        generator = np.random.Generator(np.random.Philox(index))
        noise_shape = (1, shape.latent_channels, shape.latent_size, shape.latent_size)
        noises.append(generator.standard_normal(noise_shape, dtype=np.float32))
    box_mask = torch.from_numpy(np.concatenate(boxes))
    return LoopInputs(
        crop=torch.from_numpy(np.concatenate(crops)).float(),
        ornament=torch.from_numpy(np.concatenate(ornaments)).float(),
        pixels=torch.cat(pixels),
        box_mask=box_mask,
        ornament_mask=torch.ones_like(box_mask),
        noise=torch.from_numpy(np.concatenate(noises)),
    )


def one(inputs: LoopInputs, index: int) -> LoopInputs:
    """Sample `index` alone, as a batch of one."""
    part = slice(index, index + 1)
    return LoopInputs(**{name: getattr(inputs, name)[part] for name in LoopInputs.__annotations__})


def _pixels(ornament: Tensor, shape: SampleShape) -> Tensor:
    size = (shape.pixels, shape.pixels)
    resized = torch.nn.functional.interpolate(ornament, size=size, mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (shape.pixel_mean, shape.pixel_std))
    return (((resized + 1) / 2).clamp(0, 1) - mean) / std
