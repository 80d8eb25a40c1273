"""Working ahead: the next item is made while this one is in use."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """`items`, in their order, each made in a thread of its own while the one before it is in use; at most one waits.

    What making an item raises is raised where the item would have come. Closing waits for the item that is being made.
    """
    context = copy_context()  # traces and meters of the caller
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        following = thread.submit(context.run, _next, items)
        while (item := following.result()) is not None:
            following = thread.submit(context.run, _next, items)
            yield item[0]


def _next(items: Iterator[T]) -> tuple[T] | None:
    for item in items:
        return (item,)
    return None
