"""Mask-guided attention (section 3.3, Eq. 5 to 9): a training loss; inference pays nothing for it.

The mass that every query of the denoising U-Net puts on the *masked* ornament tokens, summed over keys
(Eq. 6 and 7) and averaged over layers (Eq. 8), must be the wearing mask (Eq. 9).
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from parure_export.model.attention import ReferenceAttention


class GuidedAttention(ReferenceAttention):
    """A `ReferenceAttention` that also writes the attention mass on ornament tokens into `attention_mass`.

    The references must be [ornament tokens, person tokens], n each, as `TryOnUNet` appends them.
    `attention_mass["ornament_mask"]` holds M_o [B, 1, s, s]; a layer that is `guided` adds its own map
    [B, 1, side, side].
    """

    def __init__(self, layer: str, guided: bool) -> None:
        super().__init__(layer)
        self.guided = guided

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        captured: MutableMapping[str, Tensor] | None = None,
        references: Mapping[str, Tensor] | None = None,
        projected: Mapping[str, Tensor] | None = None,
        attention_mass: MutableMapping[str, Tensor] | None = None,
    ) -> Tensor:
        if self.guided and attention_mass is not None and references is not None:
            keys = torch.cat([hidden_states, references[self.layer]], dim=1)
            attention_mass[self.layer] = _mass(attn, hidden_states, keys, attention_mass["ornament_mask"])
        return super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, captured, references, projected
        )


def guide_attention(unet: UNet2DConditionModel, layers: Sequence[str]) -> None:
    """Let every attention layer accept `attention_mass`; only `layers` (self-attention) write to it."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors]
    unet.set_attn_processor({f"{name}.processor": GuidedAttention(name, name in layers) for name in names})


def mask_mapping_loss(attention_mass: Mapping[str, Tensor], wearing_mask: Tensor) -> Tensor:
    """L3 (Eq. 9): mean of the layers' maps at the mask's resolution against the wearing mask [B, 1, s, s]."""
    side = wearing_mask.shape[-1]
    maps = [
        F.interpolate(mass, size=(side, side), mode="bilinear", align_corners=False)
        for name, mass in attention_mass.items()
        if name != "ornament_mask"
    ]
    return F.mse_loss(torch.stack(maps).mean(dim=0), wearing_mask)


def _mass(attn: Attention, queries: Tensor, keys: Tensor, ornament_mask: Tensor) -> Tensor:
    tokens = queries.shape[1]
    side = int(tokens**0.5)
    q = attn.to_q(queries).unflatten(2, (attn.heads, -1)).transpose(1, 2).float()
    k = attn.to_k(keys).unflatten(2, (attn.heads, -1)).transpose(1, 2).float()
    weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
    on_ornament = weights[:, :, tokens : 2 * tokens]
    mask = F.adaptive_avg_pool2d(ornament_mask.float(), side).flatten(1)
    mass: Tensor = (on_ornament @ mask[:, :, None]).transpose(1, 2)
    return mass.reshape(-1, 1, side, side)
