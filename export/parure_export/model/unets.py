"""The denoising U-Net and ReferenceNet, both around diffusers' `UNet2DConditionModel`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from parure.manifest import FeatureLayout
from parure_export.model.attention import attach_reference_attention, key_value_projections
from parure_export.model.features import RAW, Form, feature_layout, pack, unpack


class TryOnUNet(nn.Module):
    """One denoising pass whose self-attention also looks at the ornament and at the person.

    With `give_deep` its second output is what the last up block is given: the deep features, which `ShallowUNet`
    takes in place of everything below the outer blocks.
    """

    def __init__(
        self, unet: UNet2DConditionModel, mask_head_layers: Sequence[str], form: Form = "raw", give_deep: bool = False
    ) -> None:
        super().__init__()
        self.unet = unet
        self.layout = feature_layout(unet, attach_reference_attention(unet), mask_head_layers, form)
        self.give_deep = give_deep

    def forward(
        self,
        latents: Tensor,
        masked_latents: Tensor,
        mask: Tensor,
        timestep: Tensor,
        tokens: Tensor,
        ornament_features: Tensor,
        model_features: Tensor,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Predict the noise (or v, or the sample: the checkpoint's prediction type).

        Shapes: latents, masked_latents [B, 4, s, s]; mask [B, 1, s, s] in 0..1; timestep [B], per sample;
        tokens [B, n, d]; features [B, L]. Returns [B, 4, s, s], and the deep features [B, C, h, w].
        """
        kept: list[Tensor] = []
        with _watched(self.unet.up_blocks[-1], kept) if self.give_deep else nullcontext():
            noise: Tensor = self.unet(
                torch.cat([latents, masked_latents, mask], dim=1),
                timestep,
                tokens,
                cross_attention_kwargs=_references(ornament_features, model_features, self.layout),
                return_dict=False,
            )[0]
        return (noise, kept[0]) if self.give_deep else noise


class ShallowUNet(nn.Module):
    """The outermost blocks of a `TryOnUNet` around deep features that come from outside.

    It holds its blocks and not the U-Net, whose inner weights can be let go of.
    """

    def __init__(self, whole: TryOnUNet) -> None:
        super().__init__()
        unet = whole.unet
        self.layout = whole.layout
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.conv_out = unet.conv_in, unet.conv_out
        self.conv_norm_out, self.conv_act = unet.conv_norm_out, unet.conv_act
        self.down, self.up = unet.down_blocks[0], unet.up_blocks[-1]

    def forward(
        self,
        latents: Tensor,
        masked_latents: Tensor,
        mask: Tensor,
        timestep: Tensor,
        tokens: Tensor,
        ornament_features: Tensor,
        model_features: Tensor,
        deep: Tensor,
    ) -> Tensor:
        """As `TryOnUNet`, which gives `deep` [B, C, h, w]; with that of the same inputs it computes the same."""
        sample = torch.cat([latents, masked_latents, mask], dim=1)
        embedded = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        references = _references(ornament_features, model_features, self.layout)
        given = {"temb": embedded}
        attending = given | {"encoder_hidden_states": tokens, "cross_attention_kwargs": references}
        sample = self.conv_in(sample)
        _, skips = self.down(hidden_states=sample, **(attending if _attends(self.down) else given))
        skips = (sample, *skips)[: len(self.up.resnets)]  # what the downsampler makes goes to the inner blocks
        up = attending if _attends(self.up) else given
        sample = self.up(hidden_states=deep, res_hidden_states_tuple=skips, **up)
        noise: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(sample)))
        return noise


class ReferenceNet(nn.Module):
    """A U-Net of the denoising U-Net's shape, run at timestep 0; its self-attention inputs are the features.

    With `denoiser`, its key and value projections are applied here, once, instead of there at every step.
    """

    def __init__(
        self, unet: UNet2DConditionModel, mask_head_layers: Sequence[str], denoiser: UNet2DConditionModel | None = None
    ) -> None:
        super().__init__()
        self.unet = unet
        layers = attach_reference_attention(unet)
        self.layout = feature_layout(unet, layers, mask_head_layers, "raw" if denoiser is None else "projected")
        self.projected = [layer.layer for layer in self.layout.layers if layer.layer in layers]
        self.projections = None if denoiser is None else key_value_projections(denoiser, self.projected)

    def forward(self, latents: Tensor, mask: Tensor, tokens: Tensor) -> Tensor:
        """latents [B, 4, s, s], mask [B, 1, s, s] in 0..1, tokens [B, n, d] -> features [B, L]."""
        captured: dict[str, Tensor] = {}
        timestep = torch.zeros(latents.shape[0], dtype=torch.float32, device=latents.device)
        self.unet(
            torch.cat([latents, mask], dim=1),
            timestep,
            tokens,
            cross_attention_kwargs={"captured": captured},
            return_dict=False,
        )
        if self.projections is None:
            return pack(captured, self.layout)
        features = {f"{layer}{RAW}": tokens for layer, tokens in captured.items()}
        for layer, project in zip(self.projected, self.projections, strict=True):
            features[layer] = project(captured[layer])
        return pack(features, self.layout)


def _references(ornament_features: Tensor, model_features: Tensor, layout: FeatureLayout) -> dict[str, Any]:
    """Packed features of both pictures as the attention layers take them."""
    ornament, model = unpack(ornament_features, layout), unpack(model_features, layout)
    given = "references" if layout.form == "raw" else "projected"
    return {given: {layer: torch.cat([ornament[layer], model[layer]], dim=1) for layer in ornament}}


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


@contextmanager
def _watched(block: nn.Module, kept: list[Tensor]) -> Iterator[None]:
    """Within it, what `block` is given is `kept`."""

    def keep(_: nn.Module, __: tuple[Any, ...], given: dict[str, Any]) -> None:
        kept.append(given["hidden_states"])

    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
