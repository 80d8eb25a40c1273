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


class Numbers(click.ParamType):
    """Whole numbers from 1 on, such as `1,4,8`, as a tuple."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            self.fail(f"{value!r} is no list of whole numbers from 1 on; expected a form such as 1,4,8", param, ctx)
        return tuple(dict.fromkeys(numbers))
