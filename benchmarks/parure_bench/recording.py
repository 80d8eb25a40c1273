"""A run and its record: whatever ends the run, what it had measured is written, and marked where it is not all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from parure.errors import ParureError
from parure_bench.environment import environment, gpu_states
from parure_bench.record import Kind, Record, Series, Span, check_place, save_record


@dataclass
class Run:
    """What a run has found so far. `incomplete` may be set by a run that ends early without an error."""

    series: list[Series] = field(default_factory=list)
    timeline: list[Span] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    incomplete: str | None = None


@contextmanager
def recording(out: Path, kind: Kind, command: str, bundle: str | None = None) -> Iterator[Run]:
    """Write the record of what happens inside to `out`.

    An error of parure, or Ctrl-C, leaves a record with what there was until then, marked `incomplete`; it goes on
    to the caller. With nothing measured, nothing is written.
    """
    check_place(out)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    found = environment(bundle)
    run = Run()

    def save() -> None:
        record = Record(
            kind=kind, command=command, started=started, environment=found, gpus_after=gpu_states()[0],
            series=tuple(run.series), timeline=tuple(run.timeline), notes=tuple(run.notes), incomplete=run.incomplete,
        )  # fmt: skip
        save_record(out, record)

    try:
        yield run
    except (ParureError, KeyboardInterrupt) as error:
        if run.series:
            run.incomplete = str(error) or "cancelled"
            save()
        raise
    save()


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars on standard error; silent where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        yield bars
