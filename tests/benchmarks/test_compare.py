"""`parure bench compare`: significant and large, or no change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from parure.cli import main
from parure.errors import RecordError
from parure_bench.compare import compare
from parure_bench.environment import Environment, GpuState
from parure_bench.record import Record, Series, save_record

MakeRecord = Callable[..., Record]


def around(mean: float, spread: float = 0.01, count: int = 40, seed: int = 0) -> list[float]:
    samples: list[float] = np.random.default_rng(seed).normal(mean, spread * mean, count).tolist()
    return samples


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        (around(1.20, seed=1), "slower"),
        (around(0.80, seed=1), "faster"),
        (around(1.03, seed=1), "same"),  # significant, but within the bound
        (around(1.15, spread=0.3, count=6, seed=2), "same"),  # large, but not significant
        ([1.2, 1.2], "too few samples"),
    ],
)
def test_only_what_is_significant_and_beyond_the_bound_is_a_change(
    new: list[float], verdict: str, record: MakeRecord
) -> None:
    comparison = compare(record({"unet": around(1.0)}), record({"unet": new}), 0.05)
    assert [change.verdict for change in comparison.changes] == [verdict]


def test_rates_are_slower_when_they_are_lower(record: MakeRecord) -> None:
    def rates(mean: float) -> Record:
        return record({}, series=(Series(name="served", unit="pictures/s", samples=tuple(around(mean))),))

    assert compare(rates(10), rates(8), 0.05).changes[0].verdict == "slower"
    assert compare(rates(10), rates(12), 0.05).changes[0].verdict == "faster"


def test_series_of_one_record_only_are_named_and_libraries_that_changed_are_warned_of(record: MakeRecord) -> None:
    machine = record({}).environment
    newer = machine.model_copy(update={"libraries": {"numpy": "2"}, "bundle": "other"})
    old = record({"unet": around(1.0), "gone": around(1.0)}, incomplete="the server died")
    new = record({"unet": around(1.0), "added": around(1.0)}, environment=newer)
    comparison = compare(old, new, 0.05)
    assert "gone" in comparison.missing[0] and "added" in comparison.added[0]
    warnings = " | ".join(comparison.warnings)
    assert (
        "incomplete: the server died" in warnings and "numpy was none" in warnings and "different bundles" in warnings
    )


def test_a_throttled_gpu_is_warned_of(record: MakeRecord) -> None:
    gpu = GpuState(name="NVIDIA A100", driver="580", memory_bytes=1, throttled=("HwThermalSlowdown",))
    hot = record({"unet": around(1.0)}, gpus_after=(gpu,))
    assert "HwThermalSlowdown" in compare(record({"unet": around(1.0)}), hot, 0.05).warnings[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "loop"}, "of kind components, the new one of loop"),
        (
            {"environment": Environment(cpu="X", cores=9, memory_gb=1, system="L", python="3")},
            "measured on A processor",
        ),
        ({"series": (Series(name="other", samples=(1.0,)),)}, "no series in common"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(fields: dict[str, object], said: str, record: MakeRecord) -> None:
    with pytest.raises(RecordError, match=said):
        compare(record({"unet": around(1.0)}), record({"unet": around(1.0)}, **fields), 0.05)


@pytest.mark.parametrize(("mean", "bound", "code"), [(1.2, "5%", 1), (1.2, "0.3", 0), (1.0, "5%", 0), (0.5, "5%", 0)])
def test_the_exit_code_is_1_only_where_something_became_slower(
    mean: float, bound: str, code: int, record: MakeRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, samples in (("old", around(1.0)), ("new", around(mean, seed=1))):
        save_record(tmp_path / f"{name}.json", record({"unet": samples}))
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "compare", str(tmp_path / "old.json"), str(tmp_path / "new.json"), "--fail-above", bound])
    assert exit_.value.code == code
    assert "series slower" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["old.json", "nowhere.json"], ["old.json", "old.json", "--fail-above", "lots"]])
def test_wrong_input_exits_with_2(
    arguments: list[str], record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_record(tmp_path / "old.json", record({"unet": around(1.0)}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main(["bench", "compare", *arguments])
    assert exit_.value.code == 2
