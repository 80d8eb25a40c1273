from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from parure.errors import InputError
from parure.geometry import Box
from parure.image import Pixels
from parure.ornaments import ornament_key
from parure_bench.serve.inputs import Asker, Case, cases, marked


def test_marked_ornaments_differ_for_a_cache_and_hardly_for_the_eye(ornament: Pixels) -> None:
    keys = {ornament_key("b", marked(ornament, number), None) for number in range(300)}
    assert len(keys) == 300
    changed = (marked(ornament, 70_000) != ornament).any(axis=2)
    assert changed.mean() <= 1 / 16**2 and np.array_equal(marked(ornament, 0), ornament)


@pytest.mark.parametrize(("cold", "distinct"), [(False, 2), (True, 6)])
def test_a_cold_cache_never_sees_an_ornament_twice(cold: bool, distinct: int, photo: Pixels, ornament: Pixels) -> None:
    seen: list[bytes] = []

    def tryon(photo: Any, ornament: Pixels, box: Any, **options: Any) -> Any:
        seen.append(ornament.tobytes())
        return SimpleNamespace()

    ask = Asker(tryon, [Case(photo, ornament, Box(1, 1, 50, 50))], None, 2, cold=cold)  # type: ignore[arg-type]
    for number in range(6):
        ask(number)
    assert len(set(seen)) == distinct


def test_pictures_are_given_together_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--ornament is missing"):
        cases(tmp_path / "photo.png", None, "1,2,3,4")
