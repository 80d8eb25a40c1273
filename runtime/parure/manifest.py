"""The manifest: the frozen contract between export, runtime and server. It stands in a bundle as `manifest.json`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from parure.solver import SolverSpec

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
DataType = Literal["float32", "float16"]


class Frozen(BaseModel):
    """A contract: immutable, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def first_fault(error: ValidationError, *within: str) -> str:
    """The first field that is wrong, and why; `within` names what the checked part stands in."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in (*within, *first["loc"]))
    return f"{field}: {first['msg']}"


class Precision(StrEnum):
    """What most nodes compute in. With bf16 the tensors between components stay float32: numpy has no bf16."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class TensorSpec(Frozen):
    """One tensor of a component; `shape` leaves out the batch dimension, which always comes first."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Elements per sample."""
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def nbytes(self) -> int:
        """Bytes per sample."""
        return self.elements * np.dtype(self.dtype).itemsize


class Component(Frozen):
    """One exported graph: its file in the bundle and its tensors."""

    name: str
    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int
    flops: int = Field(description="floating-point operations of one sample")


class FeatureLayer(Frozen):
    """Where one self-attention layer's features lie in the packed tensor: [tokens, channels] at `offset`."""

    layer: str
    tokens: int
    channels: int
    offset: int


class FeatureLayout(Frozen):
    """The packed features of one reference picture: a flat tensor [L] that graphs slice.

    `raw` features are the inputs of ReferenceNet's self-attention, and the U-Net projects them at every step.
    `projected` ones are its keys and values of them, side by side in channels: computed once, and twice as large;
    the layers of the mask head follow raw, under names of their own.
    """

    form: Literal["raw", "projected"] = "raw"
    layers: tuple[FeatureLayer, ...]
    mask_head_layers: tuple[str, ...]

    @property
    def length(self) -> int:
        """L, the elements of one packed feature tensor."""
        return sum(layer.tokens * layer.channels for layer in self.layers)

    @model_validator(mode="after")
    def _contiguous(self) -> FeatureLayout:
        offset = 0
        for layer in self.layers:
            if layer.offset != offset:
                raise ValueError(f"layer {layer.layer} starts at {layer.offset}, expected {offset}")
            offset += layer.tokens * layer.channels
        names = {layer.layer for layer in self.layers}
        if missing := set(self.mask_head_layers) - names:
            raise ValueError(f"mask head layers {sorted(missing)} are not among the feature layers")
        return self


class Geometry(Frozen):
    """How a box on a photo becomes the model's square crop, and how the result goes back."""

    size: int = Field(description="S, the side of the crop in pixels", gt=0)
    latent_size: int = Field(description="s, the side of the latents", gt=0)
    latent_channels: int = Field(gt=0)
    enlarge: float = Field(default=1.5, ge=1.0, description="crop side / longer side of the box")
    compose: Literal["mask", "box"] = Field(
        description="the region that is pasted back: the predicted wearing mask, or the whole box"
    )
    preview: tuple[tuple[float, float, float], ...] = Field(
        description="[latent channels + 1, 3]: latents -> colours in -1..1, the last row is added"
    )
    feather: float = Field(ge=0, description="width of the soft edge as a share of the crop's side")


class ImageEncoderSpec(Frozen):
    """What the image encoder wants to see: pixels [3, size, size], (value - mean) / std, value in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class LoopSpec(Frozen):
    """The parameters of the denoise-and-mask loop."""

    alpha: Literal["linear"] = Field(default="linear", description="alpha_k of Eq. 2: a ramp 0 -> 1 over the steps")
    default_steps: int = Field(ge=1)
    default_solver: str
    default_guidance: float = 1.0
    guidance: Literal["none", "zero_condition"] = Field(
        description="`zero_condition`: the unconditional pass sees zero tokens and zero ornament features"
    )
    ornament_features_cacheable: bool = Field(
        description="export proved that ornament features depend on neither step nor wearing mask"
    )


class ComponentParity(Frozen):
    component: str
    tolerance: float
    max_relative_error: float
    samples: int


class TrajectoryStep(Frozen):
    step: int
    latents: float
    mask: float


class Parity(Frozen):
    """PyTorch against the exported graphs, on tensors captured from a real loop.

    Graphs of 16 bits are judged by fp32 graphs that round around every node: CPU runtimes widen 16-bit nodes
    and join them, which hides what a GPU would lose.
    """

    components: tuple[ComponentParity, ...]
    loop_tolerance: float = 0
    loop_max_relative_error: float = 0
    trajectory: tuple[TrajectoryStep, ...] = ()
    picture_psnr: float = Field(default=0, description="dB, of the final pictures; 100 where they are equal")
    mask_iou: float = Field(default=0, description="soft IoU of the final masks")


class Manifest(Frozen):
    """Everything that a runtime or a server has to know about a bundle."""

    schema_version: Literal[1] = 1
    pipeline: Literal["ornament_tryon"]
    precision: Precision
    max_batch: int = Field(ge=1)
    components: tuple[Component, ...]
    features: FeatureLayout
    geometry: Geometry
    image_encoder: ImageEncoderSpec
    loop: LoopSpec
    solvers: tuple[SolverSpec, ...]
    parity: Parity
    checkpoint_sha256: Sha256
    tools: dict[str, str] = Field(description="versions of the libraries that made the bundle")
    files: dict[str, Sha256] = Field(description="bundle-relative path -> sha256, of every file but the manifest")

    def component(self, name: str) -> Component:
        """The component `name`; raises KeyError with the names there are."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(f"component {name!r} not in bundle; it has {[c.name for c in self.components]}")
