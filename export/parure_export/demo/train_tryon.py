"""Trains U-Net, ReferenceNet, mask head and image encoder together: L1 + lambda_1 L2 + lambda_2 L3 (Eq. 10)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from parure_export.demo.guidance_loss import guide_attention, mask_mapping_loss
from parure_export.demo.latents import LatentTriplets
from parure_export.demo.training import Run, train
from parure_export.model import ImageEncoder, MaskHead, ReferenceNet, unpack
from parure_export.model.geometry import ModelGeometry, RawModules

BATCH = 16
LEARNING_RATE = 8e-4
CONDITION_DROPOUT = 0.1  # so that guidance has an unconditional prediction
ORNAMENT_MASK_DROPOUT = 0.5  # an ornament mask is optional at inference; without one it is all ones
PIXEL_MEAN = PIXEL_STD = 0.5


def loss_weights(progress: float) -> tuple[float, float]:
    """lambda_1 and lambda_2 at `progress` 0..1: mask first, appearance later (section 3.4)."""
    return 2.0 + 8.0 * (1 - progress) ** 2, 0.1 + 0.9 * (1 - progress) ** 2


def train_tryon(
    modules: RawModules,
    geometry: ModelGeometry,
    scheduler: DDPMScheduler,
    data: LatentTriplets,
    folder: Path,
    steps: int,
    report: Callable[[int], None],
) -> None:
    """Train all four modules from `folder`'s state on; leaves the averaged weights in `modules`."""
    run = Run(
        folder,
        {
            "unet": modules.unet,
            "reference_net": modules.reference_net,
            "mask_head": modules.mask_head,
            "image_encoder": modules.image_encoder,
        },
        steps,
        LEARNING_RATE,
        ema_decay=0.998,
    )
    step = _Step(modules, geometry)
    generator = torch.Generator().manual_seed(run.step)

    def compute() -> dict[str, Tensor]:
        batch = data.pick(torch.randint(len(data), (BATCH,), generator=generator))
        with torch.autocast("cpu", torch.bfloat16):
            l1, l2, l3 = step(*_draw(batch, scheduler, generator))
        lambda_1, lambda_2 = loss_weights(run.step / steps)
        return {"l1": l1, "l2": l2, "l3": l3, "total": l1 + lambda_1 * l2 + lambda_2 * l3}

    train(run, compute, report, save_every=100)
    run.use_average()


def _draw(b: LatentTriplets, scheduler: DDPMScheduler, generator: torch.Generator) -> tuple[Tensor, ...]:
    """A batch with its random draws: noise, timesteps, which ornament masks and conditions are dropped."""
    count = len(b)
    train_steps = int(scheduler.config.num_train_timesteps)
    timestep = torch.randint(train_steps, (count,), generator=generator)
    noise = torch.randn(b.target.shape, generator=generator)
    drop_mask = torch.rand((count, 1, 1, 1), generator=generator) < ORNAMENT_MASK_DROPOUT
    keep = (torch.rand((count, 1), generator=generator) >= CONDITION_DROPOUT).float()
    noisy = scheduler.add_noise(b.target, noise, timestep)
    velocity = scheduler.get_velocity(b.target, noise, timestep)
    alpha = (1 - timestep.float() / (train_steps - 1))[:, None, None, None]
    given_mask = torch.where(drop_mask, torch.ones_like(b.reference_mask), b.reference_mask)
    pixels = (b.pixels / 255 - PIXEL_MEAN) / PIXEL_STD
    return (
        noisy, velocity, timestep.float(), alpha, keep, pixels, b.masked, b.ornament,
        given_mask, b.reference_mask, b.wearing_mask, b.box_mask,
    )  # fmt: skip


class _Step(torch.nn.Module):
    """The three losses of one batch."""

    def __init__(self, modules: RawModules, geometry: ModelGeometry) -> None:
        super().__init__()
        self.reference_net = ReferenceNet(modules.reference_net, geometry.mask_head_layers)
        self.image_encoder = ImageEncoder(modules.image_encoder)
        self.mask_head: MaskHead = modules.mask_head
        self.unet = modules.unet
        self.layout = self.reference_net.layout
        # "the self-attention maps with the highest resolution from the encoder and decoder" (section 4.1)
        guide_attention(modules.unet, geometry.mask_head_layers)

    def forward(
        self, noisy: Tensor, velocity: Tensor, timestep: Tensor, alpha: Tensor, keep: Tensor, pixels: Tensor,
        masked: Tensor, ornament: Tensor, given_mask: Tensor, reference_mask: Tensor, wearing_mask: Tensor,
        box_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        tokens = self.image_encoder(pixels)
        ornament_features = self.reference_net(ornament, given_mask, tokens)
        with torch.no_grad():
            first = self.mask(self.reference_net(masked, box_mask, tokens), ornament_features, box_mask)
        mask = alpha * first + (1 - alpha) * box_mask  # Eq. 2
        model_features = self.reference_net(masked, mask, tokens)
        predicted = self.mask(model_features, ornament_features, mask)  # Eq. 3
        mass = {"ornament_mask": reference_mask}
        output = self.denoise(
            torch.cat([noisy, masked, mask], dim=1), timestep, tokens * keep[:, :, None],
            ornament_features * keep, model_features, mass,
        )  # fmt: skip
        weight = 0.3 + 0.7 * box_mask + 2.0 * wearing_mask
        l1 = (weight * (output.float() - velocity).pow(2)).mean() / weight.mean()
        l2 = F.mse_loss(predicted.float(), wearing_mask)  # Eq. 4
        return l1, l2, mask_mapping_loss(mass, wearing_mask)

    def mask(self, model_features: Tensor, ornament_features: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.mask_head(model_features, ornament_features, mask, self.layout)).float()

    def denoise(
        self,
        stacked: Tensor,
        timestep: Tensor,
        tokens: Tensor,
        ornament: Tensor,
        model: Tensor,
        mass: dict[str, Tensor],
    ) -> Tensor:
        """`TryOnUNet.forward`, with the attention mass written into `mass`."""
        f_o, f_m = unpack(ornament, self.layout), unpack(model, self.layout)
        references = {layer: torch.cat([f_o[layer], f_m[layer]], dim=1) for layer in f_o}
        kwargs = {"references": references, "attention_mass": mass}
        return cast(Tensor, self.unet(stacked, timestep, tokens, cross_attention_kwargs=kwargs, return_dict=False)[0])
