"""What measuring commands share: where the record goes, how often to measure, and the command as it was typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def out_option(kind: str) -> Callable[[Command], Command]:
    return click.option(
        "--out", default=f"out/bench/{kind}.json", show_default=True, type=click.Path(path_type=Path),
        help="The record to write.",
    )  # fmt: skip


def rounds_options(count: int, warmup: int) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        function = click.option(
            "--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this long, but 3 rounds."
        )(function)
        function = click.option(
            "--warmup", default=warmup, show_default=True, type=click.IntRange(0), help="Rounds that are not kept."
        )(function)
        return click.option("--rounds", default=count, show_default=True, type=click.IntRange(1))(function)

    return decorate


def typed_command() -> str:
    """The command line as a user would type it again."""
    return shlex.join(["parure", *sys.argv[1:]])


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, such as `1,4,8`; for `type=`."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise click.BadParameter(f"{text!r} is no list of whole numbers from 1 on; expected a form such as 1,4,8")
    return tuple(dict.fromkeys(found))


def share(text: str) -> float:
    """`5%` or `0.05`, as 0.05; for `type=`."""
    try:
        found = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise click.BadParameter(f"{text!r} is no share; expected a form such as 5% or 0.05")
    return found
