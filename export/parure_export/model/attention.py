"""Self-attention that can be read from and written to: the one place where a reference meets the denoising U-Net.

ReferenceNet's *features* are the inputs of its self-attention layers. The denoising U-Net appends them to
its own keys and values, never to its queries (section 3.1 of the paper). Features travel through
`cross_attention_kwargs`: a list kept on a module would be lost when the graph is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

SELF_ATTENTION = ".attn1.processor"


class ReferenceAttention(AttnProcessor2_0):  # type: ignore[misc]
    """Attention of one layer.

    `captured`: when given, the layer's input [B, tokens, channels] is stored in it under the layer's name.
    `references`: when given, the reference tokens [B, n, channels] to append to keys and values.
    """

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        captured: MutableMapping[str, Tensor] | None = None,
        references: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        is_self_attention = encoder_hidden_states is None
        if is_self_attention and captured is not None:
            captured[self.layer] = hidden_states
        if is_self_attention and references is not None:
            encoder_hidden_states = torch.cat([hidden_states, references[self.layer]], dim=1)
        output: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output


def attach_reference_attention(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Give every attention layer of `unet` a `ReferenceAttention`; returns the self-attention layers in order."""
    names = tuple(unet.attn_processors)
    unet.set_attn_processor({name: ReferenceAttention(name.removesuffix(".processor")) for name in names})
    return tuple(name.removesuffix(".processor") for name in names if name.endswith(SELF_ATTENTION))
