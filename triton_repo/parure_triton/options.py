"""What a user may choose about a model repository. Everything else follows from the manifest."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, ValidationError

from parure.errors import InputError
from parure.manifest import Frozen
from parure_triton.model import Backend


class Provider(StrEnum):
    """What Triton's onnxruntime backend runs graphs on."""

    CUDA = "cuda"
    TENSORRT = "tensorrt"


class RepositoryOptions(Frozen):
    """docs/deploy.md has this as a table; the two are compared by a test."""

    backend: Backend = Field(default=Backend.PYTHON, description="what runs the components")
    instances: int = Field(default=1, ge=1, description="instances of every component, on each GPU")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of one instance; None: all cores")
    gpus: tuple[int, ...] = Field(default=(), description="GPUs as the server numbers them; empty: all that it sees")
    targets: tuple[str, ...] = Field(default=(), description="engines of these targets, one per compute capability")
    provider: Provider = Field(default=Provider.CUDA, description="execution provider of the onnxruntime backend")
    max_batch: int | None = Field(default=None, ge=1, description="largest batch; None: the bundle's, or the engine's")
    preferred: tuple[int, ...] | None = Field(default=None, description="batch sizes that go at once; None: derived")
    queue_delay: int | None = Field(
        default=None, ge=0, description="microseconds that a batch waits for more requests; None: 1000 on a CPU, else 0"
    )
    max_queue: int | None = Field(
        default=None, ge=1, description="requests that may wait for one component; None: as many as come"
    )
    queue_timeout: float | None = Field(
        default=None, gt=0, le=86400, description="seconds that a request may wait; None: as long as it takes"
    )
    rate_limit: int | None = Field(default=None, ge=1, description="executions at a time on one GPU, all components")
    warmup: bool = Field(default=True, description="run real shapes before a component is ready")
    cuda_graphs: bool = Field(default=True, description="capture CUDA graphs (tensorrt)")
    at_work: int = Field(default=16, ge=1, description="pictures that the server loop works on at once")
    waiting: int = Field(default=64, ge=0, description="pictures that wait for it; the next one is refused")
    ornament_cache: int = Field(default=1024, ge=0, description="MiB of ornaments that the server loop keeps")
    features_memory: Literal["cpu", "gpu"] = Field(
        default="cpu", description="where features stay between the calls of the server loop"
    )

    @classmethod
    def of(cls, **given: object) -> RepositoryOptions:
        """As the constructor; raises `InputError` naming the first option that is wrong, and those that clash."""
        try:
            options = cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            raise InputError(f"{name} is {given.get(name)!r}; {first['msg'][0].lower()}{first['msg'][1:]}") from error
        options._check_together()
        return options

    def _check_together(self) -> None:
        if self.targets and self.backend is not Backend.TENSORRT:
            raise InputError(
                f"target {self.targets[0]!r} names engines, and backend {self.backend.value} runs none; "
                "use backend tensorrt, or leave the target out"
            )
        if len(set(self.gpus)) < len(self.gpus) or any(gpu < 0 for gpu in self.gpus):
            raise InputError(f"gpus are {list(self.gpus)}; expected distinct numbers from 0 on, such as 0,1")
        if self.rate_limit and self.placement_gpus is None:
            raise InputError("a rate limit counts executions on a GPU; name the GPUs with --gpus, or leave it out")
        for batch in self.preferred or ():
            if batch < 1:
                raise InputError(f"preferred batch size is {batch}; expected whole numbers from 1 on")

    @property
    def placement_gpus(self) -> tuple[int, ...] | None:
        """GPUs of every component; None: the CPU, which is where the python backend runs unless told otherwise."""
        return None if self.backend is Backend.PYTHON and not self.gpus else self.gpus
