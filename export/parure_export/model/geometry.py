"""Geometries: the sizes of a family of checkpoints, and fresh modules with random weights for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from parure_export.model.attention import SELF_ATTENTION
from parure_export.model.features import feature_layout
from parure_export.model.mask_head import MaskHead


@dataclass(frozen=True)
class ModelGeometry:
    """What a checkpoint of this family looks like; every value is in the unit that diffusers gives it."""

    size: int
    vae: dict[str, Any]
    unet: dict[str, Any]
    clip: dict[str, Any]
    mask_head_layers: tuple[str, ...]
    mask_head_hidden: int
    prediction_type: str
    scheduler: dict[str, Any]
    pipeline: dict[str, Any]

    @property
    def latent_size(self) -> int:
        """s: the side of the latents."""
        return int(self.size // 2 ** (len(self.vae["block_out_channels"]) - 1))


@dataclass(frozen=True)
class RawModules:
    """Modules as a checkpoint folder stores them, before they are wrapped."""

    vae: AutoencoderKL
    image_encoder: CLIPVisionModelWithProjection
    unet: UNet2DConditionModel
    reference_net: UNet2DConditionModel
    mask_head: MaskHead


def new_modules(geometry: ModelGeometry, seed: int = 0) -> RawModules:
    """Modules of `geometry` with random weights drawn from `seed`."""
    torch.manual_seed(seed)
    latent_channels = geometry.vae["latent_channels"]
    unet = UNet2DConditionModel(
        sample_size=geometry.latent_size,
        in_channels=2 * latent_channels + 1,
        out_channels=latent_channels,
        **geometry.unet,
    )
    reference_net = UNet2DConditionModel(
        sample_size=geometry.latent_size, in_channels=latent_channels + 1, out_channels=latent_channels, **geometry.unet
    )
    layers = [n.removesuffix(".processor") for n in unet.attn_processors if n.endswith(SELF_ATTENTION)]
    by_name = {layer.layer: layer for layer in feature_layout(unet, layers, geometry.mask_head_layers).layers}
    chosen = [by_name[name] for name in geometry.mask_head_layers]
    head = MaskHead(
        layers=list(geometry.mask_head_layers),
        channels=[layer.channels for layer in chosen],
        sides=[int(layer.tokens**0.5) for layer in chosen],
        latent_size=geometry.latent_size,
        hidden=geometry.mask_head_hidden,
    )
    return RawModules(
        vae=AutoencoderKL(sample_size=geometry.size, **geometry.vae),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**geometry.clip)),
        unet=unet,
        reference_net=reference_net,
        mask_head=head,
    )


def _attn(*blocks: str) -> tuple[str, ...]:
    return tuple(f"{block}.transformer_blocks.0.attn1" for block in blocks)


_CROSS_DOWN, _DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
_CROSS_UP, _UP = "CrossAttnUpBlock2D", "UpBlock2D"

SD15 = ModelGeometry(
    size=512,
    vae={
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
    unet={
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (_CROSS_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
        "up_block_types": (_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    clip={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
    mask_head_layers=_attn("down_blocks.0.attentions.1", "up_blocks.3.attentions.2"),
    mask_head_hidden=64,
    prediction_type="epsilon",
    scheduler={"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    pipeline={"crop_size": 512, "compose": "box", "default_solver": "ddim", "default_steps": 30},
)

DEMO = ModelGeometry(
    size=128,
    vae={
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "block_out_channels": (24, 48, 96),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
    },
    unet={
        "block_out_channels": (32, 64, 128),
        "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN),
        "up_block_types": (_CROSS_UP, _CROSS_UP, _UP),
        "layers_per_block": 1,
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 96,
        "norm_num_groups": 16,
    },
    clip={
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "projection_dim": 96,
    },
    mask_head_layers=_attn("down_blocks.1.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1"),
    mask_head_hidden=32,
    prediction_type="v_prediction",
    scheduler={
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "trailing",
    },
    pipeline={
        "crop_size": 128,
        "compose": "mask",
        "feather": 0.02,
        "pixel_mean": (0.5, 0.5, 0.5),
        "pixel_std": (0.5, 0.5, 0.5),
        "guidance": "zero_condition",
        "default_solver": "ddim",
        "default_steps": 20,
        "default_guidance": 2.0,
    },
)

GEOMETRIES = {"sd15": SD15, "demo": DEMO}
