"""Trains the demo's VAE: L1 reconstruction of random patches, with a little KL so that latents stay smooth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from parure_export.demo.dataset import Batch
from parure_export.demo.training import Run, train

KL_WEIGHT = 1e-6
COLOUR_WEIGHT = 8.0  # squared, so that a small violet gem counts: without it latents hold brightness first
BATCH = 24
LEARNING_RATE = 1e-3


def train_vae(
    vae: AutoencoderKL, data: Batch, folder: Path, steps: int, patch: int, report: Callable[[int], None]
) -> None:
    """Train on `patch` x `patch` pieces of targets, ornaments and blanked photos; leaves the average in `vae`."""
    vae.to(memory_format=torch.channels_last)
    if not (folder / "state.safetensors").exists():
        _start_sharp(vae)
    run = Run(folder, {"vae": vae}, steps, LEARNING_RATE, ema_decay=0.995)
    generator = torch.Generator().manual_seed(run.step)
    model = _Reconstruct(vae)

    def compute() -> dict[str, Tensor]:
        images = _patches(data, patch, generator)
        with torch.autocast("cpu", torch.bfloat16):
            reconstruction, kl = model(images)
        error = (reconstruction.float() - images).abs()
        edges = (_gradient(reconstruction.float()) - _gradient(images)).abs()
        l1, colour = error.mean(), F.mse_loss(_chroma(reconstruction.float()), _chroma(images))
        total = l1 + 0.5 * edges.mean() + COLOUR_WEIGHT * colour + KL_WEIGHT * kl
        return {"l1": l1, "colour": colour, "kl": kl, "total": total}

    train(run, compute, report, save_every=200)
    run.use_average()


def _start_sharp(vae: AutoencoderKL) -> None:
    """Begin with nearly noiseless latents: with unit variance the decoder learns to ignore them and stays there."""
    with torch.no_grad():
        half = vae.config.latent_channels
        vae.quant_conv.weight[half:] = 0
        vae.quant_conv.bias[half:] = -6


class _Reconstruct(torch.nn.Module):
    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(images)).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = 0.5 * (mean.pow(2) + log_variance.exp() - 1 - log_variance).mean()
        return self.vae.decoder(self.vae.post_quant_conv(latents)), kl


def _patches(data: Batch, patch: int, generator: torch.Generator) -> Tensor:
    """[BATCH, 3, patch, patch] in -1..1: half targets, a third ornaments, the rest photos with the box blanked."""
    size = data.photo.shape[1]
    picked = torch.randint(len(data), (BATCH,), generator=generator).tolist()
    corners = torch.randint(size - patch + 1, (BATCH, 2), generator=generator).tolist()
    flips = torch.rand(BATCH, generator=generator).tolist()
    patches = []
    for n, (i, (top, left), flip) in enumerate(zip(picked, corners, flips, strict=True)):
        window = (slice(top, top + patch), slice(left, left + patch))
        source = data.target if n % 6 < 3 else data.ornament if n % 6 < 5 else data.photo
        image = torch.from_numpy(source[i][window]).float() / 127.5 - 1
        if n % 6 == 5:
            image = image * (1 - torch.from_numpy(data.box_mask[i][window]).float()[..., None] / 255)
        patches.append(image.flip(1) if flip < 0.5 else image)
    return torch.stack(patches).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _chroma(images: Tensor) -> Tensor:
    """Colour without brightness, at a quarter of the resolution: [N, 2, h / 4, w / 4]."""
    red, green, blue = F.avg_pool2d(images, 4).chunk(3, dim=1)
    return torch.cat([red - green, blue - (red + green) / 2], dim=1)


def _gradient(images: Tensor) -> Tensor:
    return torch.cat([F.pad(images.diff(dim=2), (0, 0, 0, 1)), F.pad(images.diff(dim=3), (0, 1))], dim=1)
