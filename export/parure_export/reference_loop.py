"""The whole loop in PyTorch, as section 2 of the design states it: the oracle for fidelity, the baseline for speed.

Nothing is cached, fused or skipped here. Stepping is diffusers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parure_export.model import Components
from parure_export.model.storage import in_float32
from parure_export.solver_grid import set_run


@dataclass(frozen=True)
class LoopInputs:
    """What one batch of requests gives to the loop.

    crop [B, 3, S, S] in -1..1 with the box blanked; ornament [B, 3, S, S] in -1..1; pixels [B, 3, P, P]
    normalised; box_mask and ornament_mask [B, 1, s, s] in 0..1; noise [B, 4, s, s] ~ N(0, 1).
    """

    crop: Tensor
    ornament: Tensor
    pixels: Tensor
    box_mask: Tensor
    ornament_mask: Tensor
    noise: Tensor


@dataclass(frozen=True)
class LoopState:
    """After step k: latents z_{k+1}, the mask M that the step was given, the mask M_pred it led to."""

    latents: Tensor
    mask: Tensor
    predicted_mask: Tensor


Observer = Callable[..., None]  # component, arguments, output, and the deep features where a U-Net gives them


@torch.no_grad()
def reference_loop(
    components: Components,
    inputs: LoopInputs,
    scheduler: Any,
    steps: int,
    *,
    alpha: Callable[[int, int], float] = lambda k, count: k / (count - 1) if count > 1 else 0.0,
    guidance: float = 1.0,
    observe: Observer = lambda component, arguments, *outputs: None,
) -> Iterator[LoopState]:
    """Denoise with a diffusers `scheduler`; `observe` sees every component call with its tensors.

    `alpha(k, K)` is alpha_k of Eq. 2 (0 switches the mask loop off). The scheduler must not draw noise of its
    own (ancestral solvers are compared by their tables instead).
    """

    def run(name: str, *arguments: Tensor) -> Tensor:
        module = getattr(components, name)
        with in_float32(module):
            given = module(*arguments)
        outputs: tuple[Tensor, ...] = given if isinstance(given, tuple) else (given,)
        observe(name, arguments, *outputs)
        return outputs[0]

    set_run(scheduler, steps)
    timesteps = scheduler.timesteps
    z_m = run("vae_encoder", inputs.crop)
    z_o = run("vae_encoder", inputs.ornament)
    c = run("image_encoder", inputs.pixels)
    M_box, M_o = inputs.box_mask, inputs.ornament_mask
    z = inputs.noise * scheduler.init_noise_sigma
    M_pred = M_box
    for k, t in enumerate(timesteps):
        a = alpha(k, len(timesteps))
        M = a * M_pred + (1 - a) * M_box  # Eq. 2
        f_o = run("reference_net", z_o, M_o, c)
        f_m = run("reference_net", z_m, M, c)
        M_pred = run("mask_head", f_m, f_o, M)  # Eq. 3
        z_k = scheduler.scale_model_input(z, t)
        t_k = t.float().expand(len(z))
        eps = run("unet", z_k, z_m, M, t_k, c, f_o, f_m)
        if guidance != 1.0:
            eps_u = run("unet", z_k, z_m, M, t_k, torch.zeros_like(c), torch.zeros_like(f_o), f_m)
            eps = eps_u + guidance * (eps - eps_u)
        z = scheduler.step(eps, t, z, return_dict=False)[0]
        yield LoopState(z, M, M_pred)


def decode(components: Components, latents: Tensor) -> Tensor:
    """latents [B, 4, s, s] -> pictures [B, 3, S, S], about -1..1."""
    with torch.no_grad(), in_float32(components.vae_decoder):
        picture: Tensor = components.vae_decoder(latents)
    return picture
