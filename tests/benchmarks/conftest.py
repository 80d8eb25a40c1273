"""Records for tests, made without measuring anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from parure_bench.environment import Environment
from parure_bench.record import Record, Series

MACHINE = Environment(cpu="A processor", cores=2, memory_gb=8, system="Linux", python="3.11", bundle="b")


@pytest.fixture
def record() -> Callable[..., Record]:
    """A record of components, with `samples` by component; other fields by keyword."""

    def make(samples: dict[str, list[float]], **fields: Any) -> Record:
        series = tuple(
            Series(name=n, labels={"batch": 1, "backend": "onnxruntime"}, samples=s) for n, s in samples.items()
        )
        given = {
            "kind": "components", "command": "parure bench components b", "started": "2026-01-01T00:00:00+00:00",
            "environment": MACHINE, "series": series,
        }  # fmt: skip
        return Record(**given | fields)

    return make
