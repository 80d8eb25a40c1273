"""The six wrapped modules, by the names of the bundle's components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from parure.manifest import FeatureLayout
from parure_export.model.encoders import ImageEncoder, VaeDecoder, VaeEncoder
from parure_export.model.mask_head import MaskHeadComponent
from parure_export.model.unets import ReferenceNet, TryOnUNet


@dataclass(frozen=True)
class Components:
    """Wrapped modules. Users with classes of their own fill it from an entry point."""

    vae_encoder: nn.Module
    image_encoder: nn.Module
    reference_net: nn.Module
    mask_head: nn.Module
    unet: nn.Module
    vae_decoder: nn.Module
    layout: FeatureLayout

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module, in the order in which the loop first needs them."""
        for name in ("vae_encoder", "image_encoder", "reference_net", "mask_head", "unet", "vae_decoder"):
            yield name, getattr(self, name)


__all__ = ["Components", "ImageEncoder", "MaskHeadComponent", "ReferenceNet", "TryOnUNet", "VaeDecoder", "VaeEncoder"]
