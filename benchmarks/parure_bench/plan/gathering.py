"""Where simulated pictures wait for one another: `parure_triton.loop_model.meeting`, in simulated time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial

import simpy

from parure_triton.loop_model.meeting import LEAST_WAIT, MET, PATIENCE

_WEIGHT = 0.2  # of the newest call in the mean of recent ones


@dataclass
class _Place:
    waiting: list[simpy.Event] = field(default_factory=list)
    seconds: float = 0.0

    def begin(self) -> None:
        here, self.waiting = self.waiting, []
        for event in here:
            event.succeed()


def _lose_patience(place: _Place, go: simpy.Event, _: simpy.Event) -> None:
    """Whoever has waited longest takes all along that are here."""
    if not go.triggered:
        place.begin()


class Gathering:
    """A picture is expected from its first call of a large component on, until it leaves."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._expected: set[int] = set()
        self._places = {name: _Place() for name in MET}

    def wait(self, component: str, picture: int) -> Generator[simpy.Event, object, None]:
        """Until all that are expected have come, or for as long as a call takes."""
        place = self._places.get(component)
        if place is None:
            return
        self._expected.add(picture)
        go = self._env.event()
        place.waiting.append(go)
        self._begin_where_complete()
        if not go.triggered:
            timer = self._env.timeout(max(PATIENCE * place.seconds, LEAST_WAIT))
            timer.callbacks.append(partial(_lose_patience, place, go))
            yield go

    def called(self, component: str, seconds: float) -> None:
        """A call has taken `seconds`."""
        if (place := self._places.get(component)) is not None:
            place.seconds = seconds if not place.seconds else (1 - _WEIGHT) * place.seconds + _WEIGHT * seconds

    def leave(self, picture: int) -> None:
        self._expected.discard(picture)
        self._begin_where_complete()

    def _begin_where_complete(self) -> None:
        for place in self._places.values():
            if place.waiting and len(place.waiting) >= len(self._expected):
                place.begin()
