"""The mask head: from features to the wearing mask (Eq. 3)."""

from __future__ import annotations

from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from parure.manifest import FeatureLayout
from parure_export.model.features import raw_features, unpack


class MaskHead(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """M_pred = MLP([f_m * M, f_o]): a linear layer per feature layer, summed at the mask's resolution, then an MLP.

    Layers whose features are coarser than the mask are brought to its resolution by pixel shuffle.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, layers: list[str], channels: list[int], sides: list[int], latent_size: int, hidden: int) -> None:
        """`layers`, their `channels` and the `sides` of their token grids; `latent_size` is the mask's side s."""
        super().__init__()
        self.factors = [latent_size // side for side in sides]
        self.norms = nn.ModuleList(nn.LayerNorm(2 * c) for c in channels)
        self.projections = nn.ModuleList(
            nn.Linear(2 * c, hidden * f * f) for c, f in zip(channels, self.factors, strict=True)
        )
        self.mlp = nn.Sequential(
            nn.SiLU(), nn.Conv2d(hidden + 1, hidden, 3, padding=1), nn.SiLU(), nn.Conv2d(hidden, 1, 1)
        )

    def forward(self, model_features: Tensor, ornament_features: Tensor, mask: Tensor, layout: FeatureLayout) -> Tensor:
        """features [B, L] each, mask [B, 1, s, s] in 0..1 -> mask [B, 1, s, s] in 0..1."""
        f_m, f_o = unpack(model_features, layout), unpack(ornament_features, layout)
        grids: list[Tensor] = []
        for layer, factor, norm, project in zip(
            self.config.layers, self.factors, self.norms, self.projections, strict=True
        ):
            m = F.avg_pool2d(mask, factor).flatten(2).transpose(1, 2)
            joined = project(norm(torch.cat([raw_features(f_m, layer) * m, raw_features(f_o, layer)], dim=2)))
            side = mask.shape[-1] // factor
            grids.append(F.pixel_shuffle(joined.transpose(1, 2).unflatten(2, (side, side)), factor))
        return torch.sigmoid(self.mlp(torch.cat([torch.stack(grids).sum(dim=0), mask], dim=1)))


class MaskHeadComponent(nn.Module):
    """The mask head with its feature layout bound: the component's three inputs alone remain."""

    def __init__(self, head: MaskHead, layout: FeatureLayout) -> None:
        super().__init__()
        self.head = head
        self.layout = layout

    def forward(self, model_features: Tensor, ornament_features: Tensor, mask: Tensor) -> Tensor:
        return cast(Tensor, self.head(model_features, ornament_features, mask, self.layout))
