"""One engine that is wanted, and the key under which it is kept."""

from __future__ import annotations

import hashlib

from pydantic import Field, model_validator

from parure.manifest import Frozen, Sha256
from parure_export.engines.targets import Capability, Flavor

BUILDER_REVISION = 1  # raise it when the same request would give another engine


class Profile(Frozen):
    """The batch sizes that an engine takes: from `min` to `max`, fastest at `opt`. Equal ones are a static shape."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Profile:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"profile {self} is not ordered; expected MIN <= OPT <= MAX")
        return self

    def __str__(self) -> str:
        return f"{self.min}-{self.opt}-{self.max}" if self.min < self.max else f"{self.max}"


class Options(Frozen):
    """What the builder is told beyond the graph."""

    level: int = Field(default=3, ge=0, le=5, description="builder optimization level")
    workspace: int | None = Field(default=None, gt=0, description="bytes of scratch memory that kernels may use")
    refittable: bool = Field(default=False, description="weights of the same architecture can be put in later")
    strip: bool = Field(default=False, description="the plan has no weights; they are refitted when it is loaded")
    weight_streaming: bool = Field(default=False, description="weights may stay in host memory")


class BuildRequest(Frozen):
    """Everything that an engine depends on."""

    component: str
    graph_sha256: Sha256 = Field(description="of the graph and the file of its weights")
    structure_sha256: Sha256 = Field(description="of the graph without the values of its weights")
    flavor: Flavor
    flavor_version: str
    capability: Capability | None
    profile: Profile
    options: Options
    revision: int = BUILDER_REVISION

    @property
    def key(self) -> str:
        """The engine's name in the cache: a change of anything that it depends on is another one."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def family(self) -> str:
        """The same for engines that differ in nothing but the values of their weights."""
        return hashlib.sha256(self.model_dump_json(exclude={"graph_sha256"}).encode()).hexdigest()
