"""What measuring commands share: where the record goes, how often to measure, and the command as it was typed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from parure.bundle import Bundle
from parure.errors import InputError

PIPED_WIDTH = 160
Command = TypeVar("Command", bound=Callable[..., Any])


def out_option(kind: str) -> Callable[[Command], Command]:
    return click.option(
        "--out", default=f"out/bench/{kind}.json", show_default=True, type=click.Path(path_type=Path),
        help="The record to write.",
    )  # fmt: skip


def rounds_options(count: int, warmup: int, settle: float) -> Callable[[Command], Command]:
    def decorate(function: Command) -> Command:
        function = click.option(
            "--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after this long, but 3 rounds."
        )(function)
        function = click.option(
            "--settle", default=settle, show_default=True, type=click.FloatRange(0),
            help="Idle seconds before every call, in which threads of the one before stop spinning.",
        )(function)  # fmt: skip
        function = click.option(
            "--warmup", default=warmup, show_default=True, type=click.IntRange(0), help="Rounds that are not kept."
        )(function)
        return click.option("--rounds", default=count, show_default=True, type=click.IntRange(1))(function)

    return decorate


def open_bundles(roots: Sequence[Path]) -> list[Bundle]:
    """Bundles to measure side by side; raises `InputError` where they are not of one checkpoint."""
    opened = [Bundle.open(root) for root in roots]
    for other in opened[1:]:
        if other.manifest.checkpoint_sha256 != opened[0].manifest.checkpoint_sha256:
            raise InputError(
                f"bundle {other.root} is of another checkpoint than {opened[0].root}; measure it in a run of its own"
            )
    return opened


def typed_command() -> str:
    """The command line as a user would type it again."""
    return shlex.join(["parure", *sys.argv[1:]])


def wide_console() -> Console:
    """For tables: as wide as the terminal, and wide enough where the output goes to a file or a log."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)


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
