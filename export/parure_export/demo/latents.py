"""Triplets as the denoiser sees them: everything encoded once, before training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from parure_export.demo.dataset import Batch
from parure_export.model import VaeEncoder
from parure_export.model.geometry import ModelGeometry

CHUNK = 50


@dataclass(frozen=True)
class LatentTriplets:
    """N triplets: latents [N, C, s, s], masks [N, 1, s, s] in 0..1, CLIP pixels [N, 3, P, P] uint8."""

    target: Tensor
    masked: Tensor
    ornament: Tensor
    pixels: Tensor
    wearing_mask: Tensor
    reference_mask: Tensor
    box_mask: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def pick(self, indices: Tensor) -> LatentTriplets:
        """The triplets at `indices`, as float32."""
        return LatentTriplets(**{n: getattr(self, n)[indices].float() for n in self.__annotations__})


def encode(vae: VaeEncoder, data: Batch, geometry: ModelGeometry) -> LatentTriplets:
    """Encode `data`: latents as `vae` gives them, scaled."""
    starts = range(0, len(data), CHUNK)
    return join([_encode(vae, data.part(slice(start, start + CHUNK)), geometry) for start in starts])


def _encode(vae: VaeEncoder, data: Batch, geometry: ModelGeometry) -> LatentTriplets:
    box = _mask(data.box_mask)
    images = torch.cat([_image(data.target), _image(data.photo) * (1 - box), _image(data.ornament)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latents = vae(images.contiguous(memory_format=torch.channels_last)).half()
    target, masked, ornament = latents.chunk(3)
    factor = box.shape[-1] // geometry.latent_size
    return LatentTriplets(
        target=target.contiguous(),
        masked=masked.contiguous(),
        ornament=ornament.contiguous(),
        pixels=_thumbnails(data.ornament, geometry.clip["image_size"]),
        wearing_mask=F.avg_pool2d(_mask(data.wearing_mask), factor).half(),
        reference_mask=F.avg_pool2d(_mask(data.reference_mask), factor).half(),
        box_mask=F.avg_pool2d(box, factor).half(),
    )


def join(parts: list[LatentTriplets]) -> LatentTriplets:
    return LatentTriplets(
        **{name: torch.cat([getattr(p, name) for p in parts]) for name in LatentTriplets.__annotations__}
    )


def _image(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, S, S, 3] -> float [N, 3, S, S] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _mask(masks: NDArray[np.uint8]) -> Tensor:
    """uint8 [N, S, S] -> float [N, 1, S, S] in 0..1."""
    return torch.from_numpy(masks)[:, None].float() / 255


def _thumbnails(pictures: NDArray[np.uint8], size: int) -> Tensor:
    resized = [np.asarray(Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC)) for p in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()
