"""The six wrapped modules, by the names of the bundle's components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from parure.manifest import FeatureLayout
from parure.modes import SHALLOW_UNET
from parure_export.model.encoders import ImageEncoder, VaeDecoder, VaeEncoder
from parure_export.model.mask_head import MaskHeadComponent
from parure_export.model.unets import ReferenceNet, ShallowUNet, TryOnUNet


@dataclass(frozen=True)
class Components:
    """Wrapped modules. Users with classes of their own fill it from an entry point.

    With `unet_shallow` deep features can be reused: `unet` then gives them as its second output.
    """

    vae_encoder: nn.Module
    image_encoder: nn.Module
    reference_net: nn.Module
    mask_head: nn.Module
    unet: nn.Module
    vae_decoder: nn.Module
    layout: FeatureLayout
    unet_shallow: nn.Module | None = None

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module, in the order in which the loop first needs them."""
        for name in ("vae_encoder", "image_encoder", "reference_net", "mask_head", "unet", SHALLOW_UNET, "vae_decoder"):
            if (module := getattr(self, name)) is not None:
                yield name, module


__all__ = [
    "Components",
    "ImageEncoder",
    "MaskHeadComponent",
    "ReferenceNet",
    "ShallowUNet",
    "TryOnUNet",
    "VaeDecoder",
    "VaeEncoder",
]
