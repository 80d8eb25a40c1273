"""Fast modes: what the loop computes anew at a step, and what it takes from an earlier one.

A mode is a schedule and nothing else: it is asked at every step and touches no tensor. `exact`, the default, computes
everything. As text, on the command line and on the wire, a mode is the name of a preset, settings, or both:
`fast`, `fast,deep=2`, `mask=4,guidance=0.5`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from parure.errors import RequestError
from parure.manifest import Manifest

DEEP_OUTPUT = "deep"
SHALLOW_UNET = "unet_shallow"


@dataclass(frozen=True)
class Mode:
    """How often the loop computes what changes little from step to step. The defaults are exact.

    `mask` n: ReferenceNet and mask head run at every n-th step. `settled`: once a run of them moves the wearing mask
    by less than this, on average over the box, they rest; 0 never. The last step always runs them, since its mask is
    the one that is used. `guidance`: the share of the steps, from
    the first on, that are guided. `hold` n: of the guided steps every n-th runs the unconditional pass, the others add
    what it last made of the difference. `deep` n: every n-th step runs the whole U-Net, the others its outer blocks on
    the deep features of the last whole one.
    """

    mask: int = 1
    settled: float = 0.0
    guidance: float = 1.0
    hold: int = 1
    deep: int = 1

    @classmethod
    def parse(cls, text: str) -> Mode:
        """The mode that `text` names; raises `RequestError`."""
        name, *settings = text.split(",")
        if "=" in name:
            settings, name = [name, *settings], "exact"
        if name not in PRESETS:
            raise RequestError(f"mode is {text!r}; expected one of {', '.join(PRESETS)}, or settings: {_SETTINGS}")
        changes: dict[str, Any] = dict(_setting(setting, text) for setting in settings)
        return replace(PRESETS[name], **changes)

    def __str__(self) -> str:
        """What `parse` makes this mode of."""
        for name, preset in PRESETS.items():
            if preset == self:
                return name
        changed = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        return ",".join(f"{name}={value}" for name, value in changed)

    def refreshes(self, k: int, count: int, moved: float) -> bool:
        """Whether step k of `count` computes the wearing mask anew, where doing so last `moved` it by that much.

        `moved` is the mean |change| over the box, infinite before there were two masks.
        """
        return k == count - 1 or (k % self.mask == 0 and moved >= self.settled)

    def guides(self, k: int, count: int) -> bool:
        """Whether step k of `count` is guided."""
        return k < self.guidance * count

    def contrasts(self, k: int) -> bool:
        """Whether a guided step k runs the unconditional pass."""
        return k % self.hold == 0

    def dives(self, k: int) -> bool:
        """Whether step k runs the whole U-Net."""
        return k % self.deep == 0


EXACT = Mode()
PRESETS: Mapping[str, Mode] = MappingProxyType(
    {
        "exact": EXACT,
        "settled": Mode(settled=0.01),
        "balanced": Mode(settled=0.01, hold=2, deep=2),
        "fast": Mode(settled=0.01, hold=4, deep=4),
    }
)

_WHOLE, _SHARE = "a whole number from 1 on", "a number from 0 to 1"
_EXPECTED = {"mask": _WHOLE, "settled": _SHARE, "guidance": _SHARE, "hold": _WHOLE, "deep": _WHOLE}
_SETTINGS = "mask=N, settled=X, guidance=SHARE, hold=N, deep=N"


def read_mode(mode: str | Mode | None, manifest: Manifest) -> Mode:
    """`mode` as a caller gives it, None for exact; raises `RequestError` for one that there is not, or not here."""
    read = EXACT if mode is None else mode if isinstance(mode, Mode) else Mode.parse(str(mode))
    for name, expected in _EXPECTED.items():
        _check(name, getattr(read, name), expected, read)
    if read.deep > 1 and not has_deep(manifest):
        raise RequestError(
            f"mode is {str(read)!r}, which reuses deep features (deep={read.deep}), and this bundle has no "
            f"{SHALLOW_UNET}; export it again with `parure export --deep-reuse`, or ask for deep=1"
        )
    return read


def has_deep(manifest: Manifest) -> bool:
    """Whether the bundle was exported for the reuse of deep features."""
    return any(component.name == SHALLOW_UNET for component in manifest.components)


def _setting(setting: str, text: str) -> tuple[str, float]:
    name, _, value = setting.partition("=")
    if name not in _EXPECTED:
        raise RequestError(f"mode is {text!r}, and {setting!r} is no setting; expected {_SETTINGS}")
    try:
        return name, int(value) if _EXPECTED[name] == _WHOLE else float(value)
    except ValueError as error:
        raise RequestError(f"mode is {text!r}, where {name} is {value!r}; expected {_EXPECTED[name]}") from error


def _check(name: str, value: float, expected: str, mode: Mode) -> None:
    whole = expected == _WHOLE
    if isinstance(value, bool) or (whole and not isinstance(value, int)) or not _in_range(value, whole):
        raise RequestError(f"mode is {str(mode)!r}, where {name} is {value!r}; expected {expected}")


def _in_range(value: float, whole: bool) -> bool:
    return value >= 1 if whole else 0 <= value <= 1
