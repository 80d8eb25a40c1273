"""What commands share: errors for a part that is not installed or a folder that cannot be made; tables of checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from parure.errors import InputError
from parure.finding import Finding

MARKS = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "[yellow]note[/]"}
LEVELS = MARKS | {False: "[red]problem[/]", None: "[yellow]warning[/]"}


@contextmanager
def needs(what: str, extras: str) -> Iterator[None]:
    """Around an import: names the package that `what` lacks, and the extras of parure that bring it."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{what} needs {error.name}, which is not installed; run `pip install 'parure[{extras}]'`"
        ) from error


def make_folder(out: Path) -> None:
    """Make `out` before the work whose results go there. Raises `InputError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out}: {error.strerror}; choose another --out") from error


def findings_table(findings: Iterable[Finding], marks: Mapping[bool | None, str] = MARKS) -> Table:
    table = Table("what", "", "found")
    for finding in findings:
        remedy = f"\n[dim]->[/] {escape(finding.remedy)}" if finding.remedy else ""
        table.add_row(escape(finding.subject), marks[finding.passed], escape(finding.found) + remedy)
    return table
