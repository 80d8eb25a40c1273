"""Ending early: why, and how soon."""

from __future__ import annotations

import signal
import threading
from dataclasses import dataclass

from parure.signals import StopSignals


@dataclass(frozen=True)
class Cause:
    """Why a batch ended before its last row: in words, and as the exit code of the command."""

    text: str
    exit_code: int = 1


class Stop:
    """Asked for once or twice: what is in flight may finish, or not even that. Safe to share between threads."""

    def __init__(self) -> None:
        self.cause: Cause | None = None
        self._asked, self._now = threading.Event(), threading.Event()

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @property
    def now(self) -> bool:
        return self._now.is_set()

    def ask(self, cause: Cause, *, now: bool = False) -> None:
        """The first cause counts."""
        self.cause = self.cause or cause
        self._asked.set()
        if now:
            self._now.set()

    def end(self) -> None:
        """The batch is over: whoever waits need not."""
        self._asked.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, unless a stop is asked for meanwhile: then True, at once."""
        return self._asked.wait(seconds)


def stop_on_signals(stop: Stop) -> StopSignals:
    """SIGINT and SIGTERM ask `stop` to end: the first when what is in flight is done, the second at once."""

    def told(number: int) -> None:
        cause = Cause(f"stopped by {signal.Signals(number).name}", exit_code=128 + number)
        stop.ask(cause, now=stop.asked)

    return StopSignals(told)
