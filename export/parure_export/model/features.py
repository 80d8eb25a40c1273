"""Packed features: what one reference picture gives to every self-attention layer, as one flat tensor [B, L]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from parure.manifest import FeatureLayer, FeatureLayout


def feature_layout(unet: UNet2DConditionModel, layers: Sequence[str], mask_head_layers: Sequence[str]) -> FeatureLayout:
    """Where each self-attention layer's input lies in the packed features, in the order of execution.

    `layers` are names as diffusers gives them, such as
    `down_blocks.0.attentions.0.transformer_blocks.0.attn1`.
    """
    sides = _sides(unet)
    found, offset = [], 0
    for name in sorted(layers, key=_execution_order):
        channels = unet.get_submodule(name).to_q.in_features
        tokens = sides[".".join(name.split(".")[:2]) if not name.startswith("mid") else "mid_block"] ** 2
        found.append(FeatureLayer(layer=name, tokens=tokens, channels=channels, offset=offset))
        offset += tokens * channels
    return FeatureLayout(layers=tuple(found), mask_head_layers=tuple(mask_head_layers))


def pack(features: Mapping[str, Tensor], layout: FeatureLayout) -> Tensor:
    """{layer: [B, tokens, channels]} -> [B, L]."""
    return torch.cat([features[layer.layer].flatten(1) for layer in layout.layers], dim=1)


def unpack(packed: Tensor, layout: FeatureLayout) -> dict[str, Tensor]:
    """[B, L] -> {layer: [B, tokens, channels]}."""
    parts = torch.split(packed, [layer.tokens * layer.channels for layer in layout.layers], dim=1)
    return {
        layer.layer: part.reshape(-1, layer.tokens, layer.channels)
        for layer, part in zip(layout.layers, parts, strict=True)
    }


def _sides(unet: UNet2DConditionModel) -> dict[str, int]:
    """The side in latent pixels at which each block's attention runs."""
    blocks = len(unet.config.down_block_types)
    top = int(unet.config.sample_size)
    sides = {f"down_blocks.{i}": top >> i for i in range(blocks)}
    sides["mid_block"] = top >> (blocks - 1)
    sides |= {f"up_blocks.{i}": top >> (blocks - 1 - i) for i in range(blocks)}
    return sides


def _execution_order(layer: str) -> tuple[int, ...]:
    """down before mid before up, then by position."""
    stage = ("down", "mid", "up").index(layer.split("_")[0])
    return (stage, *(int(part) for part in layer.split(".") if part.isdigit()))
