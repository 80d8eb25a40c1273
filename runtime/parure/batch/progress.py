"""What a person sees while a batch runs."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parure.batch.dispatcher import Dispatcher
from parure.batch.tally import Tally

_LINE_SECONDS = 30.0  # between two lines where nobody watches


class Progress:
    """A live table on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, tally: Tally, dispatcher: Dispatcher, *, quiet: bool) -> None:
        self._console, self._tally, self._dispatcher, self._quiet = console, tally, dispatcher, quiet
        self._spoken = time.monotonic()

    def shown(self) -> AbstractContextManager[object]:
        if self._quiet or not self._console.is_terminal:
            return nullcontext()
        return Live(console=self._console, get_renderable=self._view, refresh_per_second=4, transient=True)

    def tick(self) -> None:
        """Called again and again."""
        if self._quiet or self._console.is_terminal or time.monotonic() - self._spoken < _LINE_SECONDS:
            return
        self._spoken = time.monotonic()
        self._console.print(self._line(), highlight=False)

    def _line(self) -> str:
        tally = self._tally
        left = "" if tally.left is None else f", {_duration(tally.left)} left"
        return (
            f"{tally.ended.total():,} of {tally.total:,}: {tally.ended['done']:,} done, {tally.failures:,} not, "
            f"{tally.rate:.2f} a second{left}"
        )

    def _view(self) -> Group:
        table = Table("endpoint", "on their way", "done", "s a step", "state", box=None, padding=(0, 2, 0, 0))
        for endpoint in self._dispatcher.endpoints:
            state = "[green]open[/]" if endpoint.open else f"[red]out[/] {escape(endpoint.why[:60])}"
            pace = f"{endpoint.pace:.3f}" if endpoint.paced else ""
            table.add_row(
                escape(endpoint.url), f"{endpoint.load} of {endpoint.places}", f"{endpoint.done:,}", pace, state
            )
        tally = self._tally
        bar = Table.grid()  # alone, a bar would not end its line
        bar.add_row(ProgressBar(total=max(tally.total, 1), completed=tally.ended.total(), width=60))
        return Group(Text(self._line()), bar, table)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
