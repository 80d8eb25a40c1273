"""Work in a process of its own: its memory ends with it, which that of closed sessions does not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

from parure.errors import ParureError

P = ParamSpec("P")
T = TypeVar("T")


def in_own_process(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """What `function` returns or raises; all of it has to be picklable. Raises `ParureError` where the process is killed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        try:
            return process.submit(function, *arguments, **named).result()
        except BrokenProcessPool as error:
            raise ParureError(
                "the process that measured a backend was killed; has this machine memory for it?"
            ) from error
