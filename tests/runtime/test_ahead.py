"""Working ahead: order, how far, failures, and an end that leaves no thread behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from contextvars import ContextVar

import pytest

from parure.ahead import ahead


def test_items_keep_their_order_and_one_at_most_is_made_ahead() -> None:
    made = [threading.Event() for _ in range(6)]

    def items() -> Iterator[int]:
        for k, event in enumerate(made):
            event.set()
            yield k

    with closing(ahead(items())) as those:
        for expected, k in enumerate(those):
            assert k == expected
            assert k == 5 or made[k + 1].wait(60), "nothing was made while this item was in use"
            assert not any(event.is_set() for event in made[k + 2 :])


def test_a_failure_comes_where_its_item_would_have() -> None:
    def items() -> Iterator[int]:
        yield 0
        raise ZeroDivisionError("in the other thread")

    seen = []
    with pytest.raises(ZeroDivisionError, match="in the other thread"):
        for k in ahead(items()):
            seen.append(k)
    assert seen == [0]


def test_items_are_made_in_the_context_of_the_caller() -> None:
    word: ContextVar[str] = ContextVar("word")
    word.set("of the caller")
    assert list(ahead(word.get() for _ in range(2))) == ["of the caller"] * 2


def test_closing_early_waits_for_what_is_being_made_and_ends_the_thread() -> None:
    busy = threading.Event()

    def items() -> Iterator[int]:
        for k in range(1000):
            busy.set()
            yield k

    before = set(threading.enumerate())
    with closing(ahead(items())) as those:
        assert next(those) == 0 and busy.wait(60)
    assert set(threading.enumerate()) <= before
