"""The models `tryon` and `tryon_unary` in a repository: what they declare, and the files that they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from parure.errors import InputError
from parure.ornaments import KEPT_BYTES
from parure.tryon_wire import (
    AT_WORK_PARAMETER,
    INPUTS,
    OUTPUTS,
    TRYON_MODEL,
    UNARY_MODEL,
    WAITING_PARAMETER,
    WireTensor,
)


@dataclass(frozen=True)
class LoopOptions:
    """The bounds of the server loop; each of the two models has them for itself.

    `at_work` pictures are worked on at once, `waiting` more wait, and the next is refused. `queue_delay` is how many
    microseconds the batcher of a large component waits for more calls. `features`: where the features stay between calls.
    """

    at_work: int = 16
    waiting: int = 64
    cache_bytes: int = KEPT_BYTES
    queue_delay: int = 1000
    features: Literal["cpu", "gpu"] = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("at_work", 1), ("waiting", 0), ("cache_bytes", 0), ("queue_delay", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected a whole number from {least} on")

    def parameters(self) -> dict[str, str]:
        return {
            AT_WORK_PARAMETER: str(self.at_work),
            WAITING_PARAMETER: str(self.waiting),
            "ornament_cache_bytes": str(self.cache_bytes),
            "features_memory": self.features,
        }


MODELS = {TRYON_MODEL: True, UNARY_MODEL: False}
"""Name of the model -> whether it is decoupled."""


def data_type(tensor: WireTensor) -> str:
    """As `config.pbtxt` has it."""
    return "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"


__all__ = ["INPUTS", "MODELS", "OUTPUTS", "LoopOptions", "data_type"]
