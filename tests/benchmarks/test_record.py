"""Records: what is written is read, what is not one is refused, and a run that is cut short keeps what it had."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from parure.errors import RecordError, ServerUnavailable
from parure_bench.record import Record, Series, Span, load_record, save_record
from parure_bench.recording import recording

MakeRecord = Callable[..., Record]


def test_a_record_is_read_as_it_was_written(record: MakeRecord, tmp_path: Path) -> None:
    labels = {"batch": 4, "precision": "fp16", "guidance": 1.5}
    series = Series(name="unet", labels=labels, samples=(0.1, 0.2), figures={"flops": 1e12})
    written = record({}, series=(series,), timeline=(Span(name="unet", start=0, seconds=0.1),), notes=("quiet",))
    save_record(tmp_path / "new" / "record.json", written)
    read = load_record(tmp_path / "new" / "record.json")
    assert read == written
    assert [type(value) for value in read.series[0].labels.values()] == [int, str, float]
    assert read.find("unet", batch=4) == (series,) and read.find("unet", batch=1) == ()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty; .* measure again"),
        ("  \n", "is empty"),
        ("latency 3 ms", "is not JSON"),
        ("[1, 2]", "no record of `parure bench`"),
        ('{"machine": {}, "figures": []}', "no record of `parure bench`"),
        ('{"schema_version": 7, "kind": "loop", "series": []}', "schema version 7; this parure reads version 1"),
        ('{"schema_version": 1, "kind": "loop", "series": [{"name": 3}]}', "record.json: .* measure again"),
    ],
)
def test_what_is_no_record_of_this_version_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(RecordError, match=said):
        load_record(tmp_path / "record.json")


def test_a_missing_record_and_one_that_cannot_be_written_are_named(record: MakeRecord, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read record .*nowhere\.json"):
        load_record(tmp_path / "nowhere.json")
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"cannot write record .* choose another --out"):
        save_record(tmp_path / "file" / "record.json", record({"unet": [1.0]}))


def test_a_place_that_takes_no_record_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="it is a folder"), recording(tmp_path, "loop", "parure bench loop b"):
        pytest.fail("the run began")


def test_numbers_that_are_not_finite_are_no_measurement(record: MakeRecord) -> None:
    with pytest.raises(ValueError, match="finite"):
        record({"unet": [float("nan")]})


@pytest.mark.parametrize("error", [ServerUnavailable("the server went away"), KeyboardInterrupt()])
def test_a_run_cut_short_keeps_what_it_measured_and_says_why(error: BaseException, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    with pytest.raises(type(error)), recording(out, "serve", "parure bench serve URL") as run:
        run.series.append(Series(name="request", samples=(0.5,)))
        raise error
    kept = load_record(out)
    assert kept.series[0].samples == (0.5,)
    assert kept.incomplete == (str(error) or "cancelled")


def test_a_run_that_measured_nothing_leaves_no_record(tmp_path: Path) -> None:
    with pytest.raises(ServerUnavailable), recording(tmp_path / "record.json", "serve", "parure bench serve URL"):
        raise ServerUnavailable("no server")
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_complete_and_names_its_environment(tmp_path: Path) -> None:
    with recording(tmp_path / "record.json", "loop", "parure bench loop b", "identity") as run:
        run.series.append(Series(name="picture", samples=(1.0,)))
    environment = json.loads((tmp_path / "record.json").read_text())["environment"]
    assert load_record(tmp_path / "record.json").incomplete is None
    assert environment["bundle"] == "identity" and environment["cores"] >= 1 and "numpy" in environment["libraries"]
