"""The try-on model in PyTorch: six modules whose inputs and outputs are the bundle's tensors."""

from parure_export.model.components import Components
from parure_export.model.encoders import ImageEncoder, VaeDecoder, VaeEncoder
from parure_export.model.features import feature_layout, pack, unpack
from parure_export.model.mask_head import MaskHead
from parure_export.model.unets import ReferenceNet, TryOnUNet

__all__ = [
    "Components",
    "ImageEncoder",
    "MaskHead",
    "ReferenceNet",
    "TryOnUNet",
    "VaeDecoder",
    "VaeEncoder",
    "feature_layout",
    "pack",
    "unpack",
]
