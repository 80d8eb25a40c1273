"""The try-on model in PyTorch: modules whose inputs and outputs are the bundle's tensors."""

from parure_export.model.components import Components
from parure_export.model.encoders import ImageEncoder, VaeDecoder, VaeEncoder
from parure_export.model.features import feature_layout, pack, unpack
from parure_export.model.mask_head import MaskHead
from parure_export.model.unets import ReferenceNet, ShallowUNet, TryOnUNet

__all__ = [
    "Components",
    "ImageEncoder",
    "MaskHead",
    "ReferenceNet",
    "ShallowUNet",
    "TryOnUNet",
    "VaeDecoder",
    "VaeEncoder",
    "feature_layout",
    "pack",
    "unpack",
]
