"""Packed features: what one reference picture gives to every self-attention layer, as one flat tensor [B, L]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from parure.manifest import FeatureLayer, FeatureLayout

Form = Literal["raw", "projected"]
RAW = "/raw"


def feature_layout(
    unet: UNet2DConditionModel, layers: Sequence[str], mask_head_layers: Sequence[str], form: Form = "raw"
) -> FeatureLayout:
    """Where each self-attention layer's features lie in the packed tensor, in the order of execution.

    `layers` are names as diffusers gives them, such as
    `down_blocks.0.attentions.0.transformer_blocks.0.attn1`. Projected, a layer holds keys and values, [tokens,
    2 x channels], and what the mask head reads follows raw as `<layer>/raw`.
    """
    sides = _sides(unet)
    ordered = sorted(layers, key=_execution_order)
    wanted = [(name, name, 1 if form == "raw" else 2) for name in ordered]
    if form == "projected":
        wanted += [(f"{name}{RAW}", name, 1) for name in ordered if name in mask_head_layers]
    found, offset = [], 0
    for entry, name, factor in wanted:
        channels = factor * unet.get_submodule(name).to_q.in_features
        tokens = sides[".".join(name.split(".")[:2]) if not name.startswith("mid") else "mid_block"] ** 2
        found.append(FeatureLayer(layer=entry, tokens=tokens, channels=channels, offset=offset))
        offset += tokens * channels
    head = tuple(mask_head_layers if form == "raw" else (f"{name}{RAW}" for name in mask_head_layers))
    return FeatureLayout(form=form, layers=tuple(found), mask_head_layers=head)


def raw_features(unpacked: Mapping[str, Tensor], layer: str) -> Tensor:
    """The raw features [B, tokens, channels] of a layer of the mask head, in either form."""
    return unpacked[f"{layer}{RAW}"] if f"{layer}{RAW}" in unpacked else unpacked[layer]


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
