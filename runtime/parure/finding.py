"""What a check has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `passed` None where it could not be, or where the answer forbids nothing.

    `remedy` says what to do about it; it is empty where there is nothing to do, or where `found` says so itself.
    """

    subject: str
    passed: bool | None
    found: str
    remedy: str = ""

    @property
    def level(self) -> Level:
        return "ok" if self.passed else "warning" if self.passed is None else "problem"
