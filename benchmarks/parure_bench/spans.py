"""Sees every component call of a picture: which, when, and how long."""

from __future__ import annotations

import time
from collections.abc import Collection

from parure.executor import Array, Arrays, Executor
from parure.manifest import Manifest
from parure_bench.record import Span


class SpanExecutor:
    """An executor whose calls are noted; the calls themselves are those of `executor`. For one picture at a time."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.name = executor.name
        self._began = time.perf_counter()
        self._calls: list[tuple[str, float, float]] = []

    @property
    def manifest(self) -> Manifest:
        return self.executor.manifest

    @property
    def identity(self) -> str:
        return self.executor.identity

    def begin(self) -> None:
        """A new picture begins now."""
        self._began = time.perf_counter()
        self._calls = []

    @property
    def spans(self) -> tuple[Span, ...]:
        """The calls since `begin`."""
        return tuple(
            Span(name=component, start=since - self._began, seconds=until - since)
            for component, since, until in self._calls
        )

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        since = time.perf_counter()
        outputs = self.executor.run(component, inputs, wanted)
        self._calls.append((component, since, time.perf_counter()))
        return outputs

    def close(self) -> None:
        self.executor.close()
