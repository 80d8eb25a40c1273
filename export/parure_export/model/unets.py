"""The denoising U-Net and ReferenceNet, both around diffusers' `UNet2DConditionModel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from parure_export.model.attention import attach_reference_attention, key_value_projections
from parure_export.model.features import RAW, Form, feature_layout, pack, unpack


class TryOnUNet(nn.Module):
    """One denoising pass whose self-attention also looks at the ornament and at the person."""

    def __init__(self, unet: UNet2DConditionModel, mask_head_layers: Sequence[str], form: Form = "raw") -> None:
        super().__init__()
        self.unet = unet
        self.layout = feature_layout(unet, attach_reference_attention(unet), mask_head_layers, form)

    def forward(
        self,
        latents: Tensor,
        masked_latents: Tensor,
        mask: Tensor,
        timestep: Tensor,
        tokens: Tensor,
        ornament_features: Tensor,
        model_features: Tensor,
    ) -> Tensor:
        """Predict the noise (or v, or the sample: the checkpoint's prediction type).

        Shapes: latents, masked_latents [B, 4, s, s]; mask [B, 1, s, s] in 0..1; timestep [B], per sample;
        tokens [B, n, d]; features [B, L]. Returns [B, 4, s, s].
        """
        ornament = unpack(ornament_features, self.layout)
        model = unpack(model_features, self.layout)
        references = {layer: torch.cat([ornament[layer], model[layer]], dim=1) for layer in ornament}
        given = "references" if self.layout.form == "raw" else "projected"
        noise: Tensor = self.unet(
            torch.cat([latents, masked_latents, mask], dim=1),
            timestep,
            tokens,
            cross_attention_kwargs={given: references},
            return_dict=False,
        )[0]
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
