"""The loop as papers' code runs it: both pictures through ReferenceNet at every step, and nothing kept.

Over an executor, in numpy (`naive_latents`), and in PyTorch on the device of its modules (`naive_torch`). Both
compute what the exact loop computes; what they do not do is save work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from parure.components import ComponentRunner
from parure.executor import FloatArray
from parure.geometry import downsample_mask, to_model
from parure.local_loop import fitted_ornament
from parure.loop import LoopOptions, Noise, ramp
from parure.manifest import Manifest
from parure.request import Request
from parure.solver import SolverState, SolverTable

if TYPE_CHECKING:
    from parure_export.model import Components


@dataclass(frozen=True)
class Inputs:
    """crop (box blanked) and ornament [1, 3, S, S] in -1..1; pixels [1, 3, P, P]; masks [1, 1, s, s]."""

    crop: FloatArray
    ornament: FloatArray
    pixels: FloatArray
    box_mask: FloatArray
    ornament_mask: FloatArray


@dataclass(frozen=True)
class Latents:
    """What a loop ends with: latents [1, 4, s, s] and the predicted mask [1, 1, s, s]."""

    latents: FloatArray
    mask: FloatArray


def naive_inputs(request: Request, manifest: Manifest) -> Inputs:
    geometry, encoder = manifest.geometry, manifest.image_encoder
    crop, box = to_model(request.crop(geometry.size)), request.region.box_mask(geometry.size)
    picture, mask = fitted_ornament(request, geometry.size)
    side = geometry.latent_size
    M_o = np.ones((side, side), np.float32)
    if mask is not None:
        M_o = downsample_mask(mask.astype(np.float32) / 255, side)
    resized = Image.fromarray(picture).resize((encoder.size, encoder.size), Image.Resampling.BICUBIC)
    pixels = (np.asarray(resized, np.float32) / 255 - np.array(encoder.mean)) / np.array(encoder.std)
    return Inputs(
        crop=np.ascontiguousarray(crop * (1 - box), dtype=np.float32),
        ornament=to_model(picture.astype(np.float32) / 255),
        pixels=np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], dtype=np.float32),
        box_mask=downsample_mask(box, side)[None, None],
        ornament_mask=M_o[None, None],
    )


def naive_latents(
    run: ComponentRunner, inputs: Inputs, table: SolverTable, noise: Noise, options: LoopOptions
) -> Latents:
    z_m, z_o = run.vae_encoder(inputs.crop), run.vae_encoder(inputs.ornament)
    c = run.image_encoder(inputs.pixels)
    solver = SolverState(table, noise.start)
    M_box = M_pred = inputs.box_mask
    alpha = ramp(len(table.timesteps)) * np.float32(options.mask_loop)
    for k, timestep in enumerate(table.timesteps):
        M = alpha[k] * M_pred + (1 - alpha[k]) * M_box  # Eq. 2
        both = (np.concatenate(pair) for pair in ((z_m, z_o), (M, inputs.ornament_mask), (c, c)))
        f_m, f_o = np.split(run.reference_net(*both), 2)
        M_pred = run.mask_head(f_m, f_o, M)  # Eq. 3
        z, t = solver.model_input(k), np.full(1, timestep, np.float32)
        eps = run.unet(z, z_m, M, t, c, f_o, f_m)
        if options.guidance != 1.0:
            eps_u = run.unet(z, z_m, M, t, np.zeros_like(c), np.zeros_like(f_o), f_m)
            eps = eps_u + np.float32(options.guidance) * (eps - eps_u)
        solver.step(k, eps, noise.at(k))
    return Latents(solver.sample, M_pred)


def naive_torch(
    components: Components, inputs: Inputs, scheduler: Any, steps: int, start: FloatArray, options: LoopOptions
) -> tuple[Latents, FloatArray]:
    """The same in PyTorch with a diffusers `scheduler`, and the decoded picture, [1, 3, S, S] about -1..1.

    Tensors stay on the device, in the type of the weights, from the first encoder to the picture.
    """
    import torch

    from parure_export.solver_grid import set_run

    weight = next(components.unet.parameters())

    def here(array: FloatArray) -> torch.Tensor:
        return torch.from_numpy(array).to(weight.device, weight.dtype)

    def unet(*arguments: torch.Tensor) -> torch.Tensor:
        given = components.unet(*arguments)  # with deep features beside the noise, where the bundle has them
        noise: torch.Tensor = given[0] if isinstance(given, tuple) else given
        return noise

    with torch.inference_mode():
        z_m, z_o = components.vae_encoder(here(inputs.crop)), components.vae_encoder(here(inputs.ornament))
        c = components.image_encoder(here(inputs.pixels))
        M_o, M_box = here(inputs.ornament_mask), here(inputs.box_mask)
        set_run(scheduler, steps)
        z, M_pred = here(start) * scheduler.init_noise_sigma, M_box
        alpha = ramp(len(scheduler.timesteps)) * np.float32(options.mask_loop)
        for k, timestep in enumerate(scheduler.timesteps):
            a = float(alpha[k])
            M = a * M_pred + (1 - a) * M_box  # Eq. 2
            both = components.reference_net(torch.cat((z_m, z_o)), torch.cat((M, M_o)), torch.cat((c, c)))
            f_m, f_o = both.split(1)
            M_pred = components.mask_head(f_m, f_o, M)  # Eq. 3
            z_k = scheduler.scale_model_input(z, timestep)
            t = timestep.to(weight.device, torch.float32).expand(1)
            eps = unet(z_k, z_m, M, t, c, f_o, f_m)
            if options.guidance != 1.0:
                eps_u = unet(z_k, z_m, M, t, torch.zeros_like(c), torch.zeros_like(f_o), f_m)
                eps = eps_u + options.guidance * (eps - eps_u)
            z = scheduler.step(eps, timestep, z, return_dict=False)[0]
        picture = components.vae_decoder(z)
        latents, mask, crop = (tensor.float().cpu().numpy() for tensor in (z, M_pred, picture))
        return Latents(latents, mask), crop
