"""What a checkpoint contains, as data: components with their sizes and costs, and the feature layout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from parure.manifest import FeatureLayout, Frozen
from parure_export.export import Exportable, from_checkpoint
from parure_export.model.storage import in_float32
from parure_export.onnx_export import INPUTS, count_flops


class ComponentReport(Frozen):
    """One wrapped module: its parameters, and the floating-point operations of one sample."""

    name: str
    inputs: dict[str, tuple[int, ...]]
    parameters: int
    flops: int


class CheckpointReport(Frozen):
    """Everything that `parure checkpoint show` prints."""

    crop_size: int
    latent_size: int
    latent_channels: int
    prediction_type: str
    guidance: str
    components: tuple[ComponentReport, ...]
    features: FeatureLayout
    sha256: str

    @property
    def feature_bytes(self) -> int:
        """Bytes of the packed features of one reference picture, in fp16."""
        return 2 * self.features.length


def report(folder: Path) -> CheckpointReport:
    """Read the checkpoint at `folder`; raises `CheckpointError` as `load_checkpoint` does."""
    model = from_checkpoint(folder)
    shapes = _shapes(model)
    return CheckpointReport(
        crop_size=model.pipeline.crop_size,
        latent_size=model.latent_size,
        latent_channels=model.latent_channels,
        prediction_type=str(model.scheduler_config.get("prediction_type", "epsilon")),
        guidance=model.pipeline.guidance,
        components=tuple(_component(name, module, shapes) for name, module in model.components.items()),
        features=model.components.layout,
        sha256=model.sha256,
    )


def _component(name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> ComponentReport:
    inputs = {key: shapes[key] for key in INPUTS[name]}
    return ComponentReport(
        name=name,
        inputs=inputs,
        parameters=sum(p.numel() for p in module.parameters()),
        flops=count_flops(module, tuple(_zeros(shape) for shape in inputs.values())),
    )


def _zeros(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros((1, *shape))


def _shapes(model: Exportable) -> dict[str, tuple[int, ...]]:
    """Every input's shape, without the batch."""
    with torch.no_grad(), in_float32(model.components.image_encoder):
        tokens = model.components.image_encoder(_zeros((3, model.pixels, model.pixels)))
    side, length = model.latent_size, model.components.layout.length
    latents = (model.latent_channels, side, side)
    return {
        "image": (3, model.pipeline.crop_size, model.pipeline.crop_size),
        "pixels": (3, model.pixels, model.pixels),
        "latents": latents,
        "masked_latents": latents,
        "mask": (1, side, side),
        "timestep": (),
        "tokens": tuple(tokens.shape[1:]),
        "features": (length,),
        "ornament_features": (length,),
        "model_features": (length,),
    }
