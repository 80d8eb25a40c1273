"""What one `config.pbtxt` has to say, frozen and typed. Nothing here knows how Triton spells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from parure.manifest import TensorSpec
from parure.triton import wire_type


class Backend(StrEnum):
    """What runs a model inside Triton."""

    PYTHON = "python"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


@dataclass(frozen=True)
class ModelTensor:
    """A tensor as Triton declares it; `dims` leaves out the batch dimension of a model that batches.

    `scalar`: the graph's tensor is [B]. It travels as [B, 1], since Triton has no tensors without dimensions;
    Triton's own backends take the 1 away again, the python backend sees it.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    scalar: bool = False
    optional: bool = False

    @classmethod
    def of(cls, spec: TensorSpec, backend: Backend = Backend.PYTHON) -> ModelTensor:
        scalar = not spec.shape and backend is not Backend.PYTHON
        return cls(spec.name, f"TYPE_{wire_type(spec)}", spec.shape or (1,), scalar)


@dataclass(frozen=True)
class Batching:
    """How requests meet in a batch, and how many may wait for it. 0 stands for no delay, no limit, no time-out.

    A batch of a `preferred` size goes at once; any other waits up to `delay_us` for more. 0: no bound. With either bound
    the batcher prepares no batch while another one runs, and Triton 2.51 then leaves a request lying for half a second now
    and then.
    """

    preferred: tuple[int, ...] = ()
    delay_us: int = 0
    max_queue: int = 0
    timeout_us: int = 0


@dataclass(frozen=True)
class Placement:
    """Where the instances run: `gpus` as the server numbers them, None for the CPU, () for every GPU it sees.

    `rate_limited`: an execution takes one unit of the resource `RATE_RESOURCE` of its GPU.
    """

    gpus: tuple[int, ...] | None = None
    rate_limited: bool = False


@dataclass(frozen=True)
class Accelerator:
    """An execution provider of Triton's onnxruntime backend, with its options."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """What one `config.pbtxt` has to say. `max_batch` 0: the model does not batch.

    `file` is the graph or plan below `1/`, empty for the python backend; `file_by_capability` has the plans for
    GPUs of other compute capabilities, such as {"9.0": "unet-b1-4-8.h100.plan"}. `warmup_batches` and
    `graph_batches` are the batch sizes that are run, and captured as CUDA graphs, before the model is ready.
    """

    name: str
    bundle: str
    max_batch: int
    instances: int
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    backend: Backend = Backend.PYTHON
    decoupled: bool = False
    batching: Batching = Batching()
    placement: Placement = Placement()
    file: str = ""
    file_by_capability: Mapping[str, str] = field(default_factory=dict)
    accelerator: Accelerator | None = None
    warmup_batches: tuple[int, ...] = ()
    graph_batches: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelFolder:
    """A model and the files of its version: name below `1/` -> where it is copied from."""

    model: Model
    files: Mapping[str, Path]
