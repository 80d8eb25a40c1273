"""What a check has to say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `passed` None where it could not be, or where the answer forbids nothing."""

    subject: str
    passed: bool | None
    found: str
