"""Why a batch ended before its last row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """In words, and as the exit code of the command."""

    text: str
    exit_code: int = 1
