"""Self-attention that can be read from and written to: the one place where a reference meets the denoising U-Net.

ReferenceNet's *features* are the inputs of its self-attention layers. The denoising U-Net appends them to
its own keys and values, never to its queries (section 3.1 of the paper). Features travel through
`cross_attention_kwargs`: a list kept on a module would be lost when the graph is traced.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from parure.errors import CheckpointError

SELF_ATTENTION = ".attn1.processor"


class ReferenceAttention(AttnProcessor2_0):  # type: ignore[misc]
    """Attention of one layer.

    `captured`: when given, the layer's input [B, tokens, channels] is stored in it under the layer's name.
    `references`: when given, the reference tokens [B, n, channels] to append to keys and values.
    `projected`: when given, the reference tokens' own keys and values [B, n, 2 x channels] to append.
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
        projected: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        is_self_attention = encoder_hidden_states is None
        if is_self_attention and projected is not None:
            return _attend(attn, hidden_states, projected[self.layer])
        if is_self_attention and captured is not None:
            captured[self.layer] = hidden_states
        if is_self_attention and references is not None:
            encoder_hidden_states = torch.cat([hidden_states, references[self.layer]], dim=1)
        output: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output


def _attend(attn: Attention, hidden_states: Tensor, projected: Tensor) -> Tensor:
    """Self-attention with more keys and values, as `AttnProcessor2_0` computes it in a transformer block."""
    keys, values = projected.chunk(2, dim=2)
    query, key, value = (
        tokens.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for tokens in (
            attn.to_q(hidden_states),
            torch.cat([attn.to_k(hidden_states), keys], dim=1),
            torch.cat([attn.to_v(hidden_states), values], dim=1),
        )
    )
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    output: Tensor = attn.to_out[0](attended) / attn.rescale_output_factor
    return output


def key_value_projections(unet: UNet2DConditionModel, layers: Sequence[str]) -> nn.ModuleList:
    """One linear map per layer, [tokens, channels] -> keys and values [tokens, 2 x channels].

    Raises `CheckpointError` for projections with a bias: guidance zeroes features, and zero must stay zero.
    """
    maps = nn.ModuleList()
    for layer in layers:
        attention = unet.get_submodule(layer)
        if attention.to_k.bias is not None or attention.to_v.bias is not None or attention.residual_connection:
            raise CheckpointError(
                f"unet: {layer} projects keys or values with a bias; export raw features (--features raw)"
            )
        weight = torch.cat([attention.to_k.weight, attention.to_v.weight])
        both = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        both.weight = nn.Parameter(weight.detach().clone())
        maps.append(both)
    return maps


def attach_reference_attention(unet: UNet2DConditionModel) -> tuple[str, ...]:
    """Give every attention layer of `unet` a `ReferenceAttention`; returns the self-attention layers in order."""
    names = tuple(unet.attn_processors)
    unet.set_attn_processor({name: ReferenceAttention(name.removesuffix(".processor")) for name in names})
    return tuple(name.removesuffix(".processor") for name in names if name.endswith(SELF_ATTENTION))
