"""SIGINT and SIGTERM as a call instead of an exception: for work that has to end in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType


class StopSignals:
    """Each SIGINT and SIGTERM calls `told` with its number, from `with` to its end; elsewhere than in the main thread,
    nothing changes."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self._told = told

    def __enter__(self) -> StopSignals:
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._told(number)
