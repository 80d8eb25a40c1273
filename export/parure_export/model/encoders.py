"""VAE and image encoder, wrapped so that their tensors are the loop's: latents come scaled, tokens projected."""

from __future__ import annotations

from typing import cast

from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection


class VaeEncoder(nn.Module):
    """image [B, 3, S, S] in -1..1 -> latents [B, 4, s, s], the posterior's mean, scaled to unit variance."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> Tensor:
        moments = self.vae.quant_conv(self.vae.encoder(image))
        mean = moments.chunk(2, dim=1)[0]
        return cast(Tensor, (mean - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor)


class VaeDecoder(nn.Module):
    """latents [B, 4, s, s] -> image [B, 3, S, S], about -1..1."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> Tensor:
        unscaled = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return cast(Tensor, self.vae.decoder(self.vae.post_quant_conv(unscaled)))


class ImageEncoder(nn.Module):
    """pixels [B, 3, P, P], normalised as the manifest says -> tokens [B, n, d]: every CLIP token, projected."""

    def __init__(self, clip: CLIPVisionModelWithProjection) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor) -> Tensor:
        vision = self.clip.vision_model
        hidden = vision(pixel_values=pixels).last_hidden_state
        return cast(Tensor, self.clip.visual_projection(vision.post_layernorm(hidden)))
