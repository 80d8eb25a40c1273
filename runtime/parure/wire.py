"""Bytes on the wire: what the messages of a server's inferences weigh, counted for the picture that they serve."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True)
class Wire:
    """Payload bytes of inference messages, without the framing of gRPC, HTTP and TCP. 0 where nothing is served."""

    sent: int = 0
    received: int = 0

    @property
    def total(self) -> int:
        return self.sent + self.received


class Timings(dict[str, float]):
    """Seconds by part of the work, with `total`; `wire` is what crossed the wire meanwhile."""

    def __init__(self, seconds: Mapping[str, float], wire: Wire) -> None:
        super().__init__(seconds)
        self.wire = wire


class Meter:
    """Adds up the bytes of one picture. Safe to share between threads."""

    def __init__(self) -> None:
        self.wire = Wire()
        self._lock = Lock()

    def add(self, sent: int, received: int) -> None:
        with self._lock:
            self.wire = Wire(self.wire.sent + sent, self.wire.received + received)


_meter: ContextVar[Meter | None] = ContextVar("meter", default=None)


class metered:
    """Whatever this thread sends and receives inside counts for `meter`. A class: it is entered at every component call."""

    __slots__ = ("_before", "_meter")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __enter__(self) -> None:
        self._before = _meter.set(self._meter)

    def __exit__(self, *raised: object) -> None:
        _meter.reset(self._before)


def count(sent: int, received: int) -> None:
    """Called by transports, once a message."""
    if (meter := _meter.get()) is not None:
        meter.add(sent, received)
