"""The ledger: whatever a kill leaves of it, every whole record is there and nothing else."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from parure.batch.ledger import NAME, SEGMENTS, Ledger, Record
from parure.batch.store import LocalStore, RemoteStore, Store
from parure.errors import InputError, StorageError


def record(number: int, status: str = "done") -> Record:
    return Record(f"{number:032x}", status, f"no. {number}", seconds={"total": number / 7})  # type: ignore[arg-type]


@pytest.fixture(params=["folder", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "folder":
        yield LocalStore(str(tmp_path))
        return
    url = f"memory://ledger/{tmp_path.name}-{os.getpid()}"
    yield RemoteStore(url)


def test_what_was_appended_is_there_after_reopening_and_the_last_record_counts(store: Store) -> None:
    with Ledger(store) as ledger:
        for number in range(50):
            ledger.append(record(number, "failed"))
        ledger.append(record(7))
        assert ledger.get(record(3).key) == record(3, "failed")
    with Ledger(store) as ledger:
        assert len(ledger) == 50
        assert ledger.get(record(7).key) == record(7) and ledger.get(record(8).key) == record(8, "failed")
        assert ledger.get("f" * 32) is None
        ledger.append(record(99))
    with Ledger(store) as ledger:
        assert len(ledger) == 51


def test_a_file_cut_at_any_byte_keeps_every_whole_record_and_takes_new_ones(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with Ledger(store) as ledger:
        for number in range(4):
            ledger.append(record(number))
    content = (tmp_path / NAME).read_bytes()
    ends = [i + 1 for i, byte in enumerate(content) if byte == 10]
    for cut in range(len(content) + 1):
        (tmp_path / NAME).write_bytes(content[:cut])
        with Ledger(store) as ledger:
            kept = sum(end <= cut for end in ends)
            assert len(ledger) == kept
            ledger.append(record(77))
        with Ledger(store) as ledger:
            assert len(ledger) == kept + 1 and ledger.get(record(77).key) == record(77)


def test_a_flipped_bit_costs_one_record(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with Ledger(store) as ledger:
        for number in range(3):
            ledger.append(record(number))
    content = bytearray((tmp_path / NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / NAME).write_bytes(content)
    with Ledger(store) as ledger:
        assert [ledger.get(record(number).key) is not None for number in range(3)] == [True, False, True]


def test_many_threads_append_and_each_record_is_kept_when_its_call_returns(store: Store) -> None:
    with Ledger(store) as ledger:

        def some(begin: int) -> None:
            for number in range(begin, begin + 25):
                ledger.append(record(number))
                assert ledger.get(record(number).key) == record(number)

        threads = [threading.Thread(target=some, args=(1000 * i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Ledger(store) as ledger:
        assert len(ledger) == 200


def test_closing_leaves_one_object_that_holds_all(tmp_path: Path) -> None:
    store = RemoteStore(f"memory://ledger-merge/{tmp_path.name}")
    with Ledger(store) as ledger:
        for number in range(9):
            ledger.append(record(number))
        assert len(store.names(SEGMENTS)) == 9
    assert len(store.names(SEGMENTS)) == 1
    with Ledger(store) as ledger:
        assert len(ledger) == 9


def test_an_append_that_fails_says_so_and_leaves_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))
    write = os.pwrite
    with Ledger(store) as ledger:
        ledger.append(record(1))

        def full(handle: int, data: bytes, offset: int) -> int:
            write(handle, bytes(data)[:10], offset)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.pwrite", full)
        with pytest.raises(StorageError, match="No space left"):
            ledger.append(record(2))
        monkeypatch.undo()
        ledger.append(record(3))
    with Ledger(store) as ledger:
        assert ledger.get(record(1).key) and ledger.get(record(3).key)


@contextmanager
def opened(store: Store) -> Iterator[None]:
    with Ledger(store):
        yield


def test_a_folder_belongs_to_one_batch_at_a_time(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    with opened(store), pytest.raises(InputError, match="another batch is writing"), opened(store):
        pass
    with opened(store):
        pass
