"""The whole batch against servers that behave as the test says."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from parure.batch.store import RemoteStore
from parure.errors import (
    BundleMismatch,
    CallRefused,
    DeadlineExceeded,
    InvalidReply,
    ServerBusy,
    ServerError,
    ServerUnavailable,
)


def hundred(helpers: SimpleNamespace, folder: Path, count: int = 100) -> Path:
    path: Path = helpers.write_jobs(folder, [helpers.row(i % 10, "abc"[i % 3], seed=i) for i in range(count)])
    return path


def test_two_equal_endpoints_share_the_work_evenly_and_never_hold_more_than_they_can(
    pictures: Path, helpers: SimpleNamespace
) -> None:
    def work(server: Any, asked: Any) -> None:
        time.sleep(0.01)

    one, two = helpers.FakeServer(work, places=3), helpers.FakeServer(work, places=3)
    summary = helpers.Servers(one=one, two=two).run(hundred(helpers, pictures, 200), pictures / "out")
    assert summary.ok and max(one.most_at_once, two.most_at_once) <= 3
    assert abs(len(one.asked) - len(two.asked)) <= 0.1 * 200


def test_rows_of_equal_content_are_computed_once_whatever_their_paths(pictures: Path, helpers: SimpleNamespace) -> None:
    (pictures / "copy.png").write_bytes((pictures / "0.png").read_bytes())
    rows = [helpers.row(0), helpers.row("copy", id="mine"), helpers.row(0, steps=4), helpers.row(0, solver="ddim")]
    rows += [helpers.row(0, seed=1), helpers.row(0, steps=5), helpers.row(0, "b"), helpers.row(0, box=[5, 5, 25, 26])]
    rows += [helpers.row(0, mode="exact"), helpers.row(0, mode="fast")]
    server = helpers.FakeServer(lambda server, asked: time.sleep(0.05))
    summary = helpers.Servers(one=server).run(helpers.write_jobs(pictures, rows), pictures / "out")
    assert summary.ok and len(server.asked) == 6 and summary.how == {"new": 6, "shared": 4}
    table = helpers.table(pictures / "out")
    assert len({row["picture"] for row in table[:4]}) == 1 and len({row["key"] for row in table}) == 6


def test_the_same_command_again_makes_nothing_twice_and_a_changed_input_anew(
    pictures: Path, helpers: SimpleNamespace
) -> None:
    server = helpers.FakeServer()
    servers, jobs = helpers.Servers(one=server), hundred(helpers, pictures, 30)
    assert servers.run(jobs, pictures / "out").ok and len(server.asked) == 30
    assert servers.run(jobs, pictures / "out").how == {"resumed": 30} and len(server.asked) == 30
    (pictures / "0.png").write_bytes((pictures / "5.png").read_bytes())
    made = sorted((pictures / "out" / "pictures").iterdir())
    made[3].unlink()
    again = servers.run(jobs, pictures / "out")
    assert again.ok and len(server.asked) == 30 + 3 + 1  # three rows have photo 0, and one picture was gone


@pytest.mark.parametrize("kind", [CallRefused])
def test_what_is_permanent_is_tried_once_ever(kind: Any, pictures: Path, helpers: SimpleNamespace) -> None:
    def refuse(server: Any, asked: Any) -> None:
        if asked["seed"] == 3:
            raise kind("the server says that the call is wrong")

    one, two = helpers.FakeServer(refuse), helpers.FakeServer(refuse)
    servers, jobs = helpers.Servers(one=one, two=two), hundred(helpers, pictures, 20)
    summary = servers.run(jobs, pictures / "out")
    assert (summary.done, summary.rejected, summary.retried) == (19, 1, 0) and summary.exit_code == 1
    assert servers.run(jobs, pictures / "out").rejected == 1
    assert len(one.asked) + len(two.asked) == 20 and one.probes == two.probes == 0


@pytest.mark.parametrize("kind", [ServerError, DeadlineExceeded, InvalidReply])
def test_what_may_be_the_jobs_fault_is_tried_a_few_times_and_again_in_the_next_run(
    kind: Any, pictures: Path, helpers: SimpleNamespace
) -> None:
    broken = threading.Event()
    broken.set()

    def fail(server: Any, asked: Any) -> None:
        if asked["seed"] == 3 and broken.is_set():
            raise kind("it went wrong")

    server = helpers.FakeServer(fail)
    servers, jobs = helpers.Servers(one=server), hundred(helpers, pictures, 20)
    summary = servers.run(jobs, pictures / "out", attempts=3)
    assert (summary.done, summary.failed, summary.retried) == (19, 1, 2) and len(server.asked) == 22
    (failed,) = [row for row in helpers.table(pictures / "out") if row["status"] == "failed"]
    assert failed["attempts"] == 3 and failed["reason"] == "it went wrong" and failed["row"] == 3
    broken.clear()
    again = servers.run(jobs, pictures / "out", attempts=3)
    assert again.ok and again.how == {"resumed": 19, "new": 1} and len(server.asked) == 23


def test_a_row_that_finds_a_mistake_in_the_code_is_failed_and_the_rest_done(
    pictures: Path, helpers: SimpleNamespace
) -> None:
    def crash(server: Any, asked: Any) -> None:
        if asked["seed"] == 3:
            raise IndexError("list index out of range")

    servers = helpers.Servers(one=helpers.FakeServer(crash))
    summary = servers.run(hundred(helpers, pictures, 20), pictures / "out")
    assert (summary.done, summary.failed) == (19, 1) and "IndexError" in summary.reasons[0][2]


def test_the_budget_bounds_what_is_tried_again(pictures: Path, helpers: SimpleNamespace) -> None:
    def fail(server: Any, asked: Any) -> None:
        raise ServerError("it went wrong")

    server = helpers.FakeServer(fail, places=8)
    summary = helpers.Servers(one=server).run(hundred(helpers, pictures, 200), pictures / "out", attempts=10)
    assert summary.failed == 200 and summary.retried <= 100 + 0.2 * 200
    assert len(server.asked) == 200 + summary.retried


def test_an_endpoint_that_dies_costs_no_job_and_comes_back(pictures: Path, helpers: SimpleNamespace) -> None:
    died = threading.Event()

    def work(server: Any, asked: Any) -> None:
        time.sleep(0.005)
        if server is one and len(one.asked) >= 20 and not died.is_set():
            died.set()
            one.alive = False
            threading.Timer(0.3, lambda: setattr(one, "alive", True)).start()
        if not server.alive:
            raise ServerUnavailable("the server went away")

    one, two = helpers.FakeServer(work), helpers.FakeServer(work)
    summary = helpers.Servers(one=one, two=two).run(hundred(helpers, pictures, 400), pictures / "out")
    assert summary.ok and summary.done == 400 and one.probes > 0
    assert len(one.asked) > 40, "it was given work again"


def test_a_full_server_is_not_ejected(pictures: Path, helpers: SimpleNamespace) -> None:
    def busy(server: Any, asked: Any) -> None:
        if len(server.asked) in (3, 4, 5):
            raise ServerBusy("no place")

    server = helpers.FakeServer(busy)
    summary = helpers.Servers(one=server).run(hundred(helpers, pictures, 30), pictures / "out")
    assert summary.ok and server.probes == 0


def test_a_slow_endpoint_is_ejected_and_the_others_do_its_work(pictures: Path, helpers: SimpleNamespace) -> None:
    class Slow(helpers.FakeServer):  # type: ignore[misc, name-defined]
        def __call__(self, *given: Any, **more: Any) -> Any:
            time.sleep(0.03)
            made = super().__call__(*given, **more)
            made.timings["total"] = 0.5
            return made

    slow, quick = Slow(), [helpers.FakeServer(lambda s, a: time.sleep(0.01)) for _ in range(2)]
    servers = helpers.Servers(slow=slow, one=quick[0], two=quick[1])
    summary = servers.run(hundred(helpers, pictures, 200), pictures / "out")
    assert summary.ok and len(slow.asked) <= 16


@pytest.mark.parametrize("seen", ["by its silence", "by a call that fails"])
def test_the_calls_of_a_frozen_endpoint_are_given_up_long_before_the_deadline(
    seen: str, pictures: Path, helpers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parure.batch.endpoint.SILENCE", 0.1)
    frozen, closed, both = threading.Event(), threading.Event(), threading.Barrier(2)

    def freeze(server: Any, asked: Any) -> None:
        time.sleep(0.005)
        if server is two or len(one.asked) < 10 or closed.is_set():
            return
        second = both.wait(10)
        one.alive = False
        if second and seen == "by a call that fails":
            raise ServerUnavailable("reset")  # so it is out, while the first call waits
        frozen.set()
        assert closed.wait(60)
        raise ServerError("CANCELLED")

    one, two = helpers.FakeServer(freeze, close=closed.set), helpers.FakeServer(freeze)
    summary = helpers.Servers(one=one, two=two).run(hundred(helpers, pictures, 100), pictures / "out", attempts=1)
    assert summary.ok and summary.done == 100 and frozen.is_set() and summary.seconds < 30


def test_without_any_endpoint_the_batch_gives_up_and_nothing_is_failed(
    pictures: Path, helpers: SimpleNamespace
) -> None:
    def die(server: Any, asked: Any) -> None:
        if len(server.asked) > 10:
            server.alive = False
            raise ServerUnavailable("gone")

    server = helpers.FakeServer(die)
    servers, jobs = helpers.Servers(one=server), hundred(helpers, pictures, 30)
    summary = servers.run(jobs, pictures / "out", patience=0.2)
    assert summary.exit_code == 1 and summary.failed == 0 and "no endpoint has answered for 0.2 s" in summary.stopped
    server.alive, server.behaviour = True, lambda s, a: None
    again = servers.run(jobs, pictures / "out")
    assert again.ok and again.how["resumed"] == summary.done


def test_endpoints_of_different_bundles_are_refused(pictures: Path, helpers: SimpleNamespace) -> None:
    servers = helpers.Servers(one=helpers.FakeServer(), two=helpers.FakeServer(identity="b" * 64))
    with pytest.raises(BundleMismatch, match="bbbbbbbbbbbb"):
        servers.run(hundred(helpers, pictures, 1), pictures / "out")


def test_an_endpoint_that_is_down_at_the_start_joins_later(pictures: Path, helpers: SimpleNamespace) -> None:
    one, two = helpers.FakeServer(lambda s, a: time.sleep(0.01)), helpers.FakeServer(alive=False)
    threading.Timer(0.2, lambda: setattr(two, "alive", True)).start()
    summary = helpers.Servers(one=one, two=two).run(hundred(helpers, pictures, 300), pictures / "out")
    assert summary.ok and two.asked


def test_too_many_failures_stop_early(pictures: Path, helpers: SimpleNamespace) -> None:
    rows = [helpers.row(i % 10, seed=i) if i % 2 else "junk" for i in range(400)]
    server = helpers.FakeServer(lambda s, a: time.sleep(0.005))
    servers, jobs = helpers.Servers(one=server), helpers.write_jobs(pictures, rows)
    summary = servers.run(jobs, pictures / "out", max_failures=5, window=4)
    assert summary.exit_code == 1 and "more than 5 jobs" in summary.stopped and summary.rejected < 50


def test_results_go_to_an_object_store_and_a_second_run_resumes_from_there(
    pictures: Path, helpers: SimpleNamespace
) -> None:
    server = helpers.FakeServer()
    servers, jobs = helpers.Servers(one=server), hundred(helpers, pictures, 20)
    url = f"memory://batch-test/{pictures.parent.name}"
    assert servers.run(jobs, url).ok
    store = RemoteStore(url)
    assert len(store.names("pictures")) == len(store.names("masks")) == 20
    assert {"results.parquet", "index.html"} <= set(store.names("."[:0]))
    assert servers.run(jobs, url).how == {"resumed": 20} and len(server.asked) == 20


def test_a_store_that_vanishes_stops_the_batch_which_can_go_on(
    pictures: Path, helpers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://vanishing/{pictures.parent.name}"
    put, gone = RemoteStore._put, threading.Event()

    def vanishing(store: RemoteStore, target: str, content: bytes) -> None:
        if gone.is_set():
            raise ConnectionError("the bucket does not answer")
        put(store, target, content)

    monkeypatch.setattr(RemoteStore, "_put", vanishing)
    monkeypatch.setattr("parure.batch.store._ATTEMPTS", 1)

    def work(server: Any, asked: Any) -> None:
        time.sleep(0.005)
        if len(server.asked) == 20:
            gone.set()

    server = helpers.FakeServer(work)
    servers, jobs = helpers.Servers(one=server), hundred(helpers, pictures, 60)
    summary = servers.run(jobs, url)
    assert summary.exit_code == 1 and "the bucket does not answer" in summary.stopped
    gone.clear()
    again = servers.run(jobs, url)
    assert again.ok and again.done == 60 and len(server.asked) <= 60 + 2 * 4


def test_one_input_that_cannot_be_read_for_now_is_failed_and_the_rest_done(
    pictures: Path, helpers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def flaky(path: Path) -> bytes:
        if path.name == "3.png":
            raise OSError(5, "Input/output error")
        return read(path)

    jobs = helpers.write_jobs(pictures, [helpers.row(i) for i in range(10)])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", flaky)
        summary = helpers.Servers(one=helpers.FakeServer()).run(jobs, pictures / "out")
    assert (summary.done, summary.failed) == (9, 1) and "Input/output error" in summary.reasons[0][2]
    assert helpers.Servers(one=helpers.FakeServer()).run(jobs, pictures / "out").ok


def test_a_row_that_says_something_wrong_after_an_id_was_recorded_never_overwrites(
    pictures: Path, helpers: SimpleNamespace
) -> None:
    servers = helpers.Servers(one=helpers.FakeServer())
    first = helpers.write_jobs(pictures, [helpers.row(0, id="x")], "first.jsonl")
    second = helpers.write_jobs(pictures, [helpers.row(1, id="x")], "second.jsonl")
    for jobs in (first, second, first):
        assert servers.run(jobs, pictures / "out").ok
    assert len(list((pictures / "out" / "pictures").glob("x-*.png"))) == 2
    (row,) = helpers.table(pictures / "out")
    assert row["how"] == "resumed" and json.loads(row["timings"])["total"] > 0
