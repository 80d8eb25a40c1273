"""What engines are built for: names of GPUs, and what each flavor of TensorRT can build where."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from parure.errors import InputError
from parure.host import gpus

Capability = tuple[int, int]


class Flavor(StrEnum):
    """`tensorrt` tunes on the very GPU that it builds for; `tensorrt-rtx` builds ahead of time, without a GPU."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"


@dataclass(frozen=True)
class Target:
    """A GPU by name; `capability` None stands for engines that run on Ampere and everything later."""

    name: str
    capability: Capability | None

    @property
    def sm(self) -> str:
        return "portable" if self.capability is None else f"sm{self.capability[0]}{self.capability[1]}"


CAPABILITIES: dict[str, Capability] = {
    "t4": (7, 5),
    "a100": (8, 0),
    "a30": (8, 0),
    "a10": (8, 6),
    "a40": (8, 6),
    "rtx-ampere": (8, 6),
    "l4": (8, 9),
    "l40s": (8, 9),
    "rtx-ada": (8, 9),
    "h100": (9, 0),
    "h200": (9, 0),
    "b200": (10, 0),
    "rtx-blackwell": (12, 0),
    "gb10": (12, 1),
}
AHEAD_OF_TIME: frozenset[Capability] = frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)})
PORTABLE_FROM: Capability = (8, 0)


def resolve(name: str, flavor: Flavor) -> Target:
    """The target `name`; raises `InputError` where it is unknown, or out of `flavor`'s reach on this machine.

    TensorRT-RTX has no ahead-of-time target for data-centre GPUs after Ampere (h100, b200): they get a portable
    engine.
    """
    if flavor is Flavor.TENSORRT:
        return _resolve_here(name)
    capability = PORTABLE_FROM if name == "portable" else _capability(name)
    if name == "portable" or (capability not in AHEAD_OF_TIME and capability >= PORTABLE_FROM):
        return Target(name, None)
    if capability not in AHEAD_OF_TIME:
        raise InputError(f"target {name} is too old for TensorRT-RTX, which begins with sm75; choose another target")
    return Target(name, capability)


def _resolve_here(name: str) -> Target:
    """The data-centre flavor measures kernels on the GPU at hand: the target must be that GPU."""
    here = local_capability()
    if here is None:
        raise InputError(
            f"flavor tensorrt builds on the GPU that the engine is for, and this machine has none; "
            f"run it on a host with {name}, or build ahead of time with --flavor tensorrt-rtx"
        )
    if name == "portable" and here >= PORTABLE_FROM:
        return Target(name, None)
    if name != "local" and (name == "portable" or _capability(name) != here):
        raise InputError(
            f"target {name} is not this machine's GPU (sm{here[0]}{here[1]}); flavor tensorrt builds on the GPU that "
            "the engine is for: run it there, or build ahead of time with --flavor tensorrt-rtx"
        )
    return Target(name, here)


def _capability(name: str) -> Capability:
    if name in CAPABILITIES:
        return CAPABILITIES[name]
    if matched := re.fullmatch(r"sm(\d+)(\d)", name):
        return int(matched[1]), int(matched[2])
    if name == "local":
        here = local_capability()
        if here is None:
            raise InputError(f"target local: this machine has no GPU; name one of {', '.join(CAPABILITIES)}, or smNN")
        return here
    raise InputError(
        f"target {name!r} is not known; expected one of {', '.join(CAPABILITIES)}, portable, local, or a compute "
        "capability such as sm80"
    )


def local_capability() -> Capability | None:
    """The compute capability of this machine's first GPU; None without one."""
    here = gpus()
    return here[0].capability if here else None
