"""Where pictures wait for one another, so that Triton's batcher finds their calls together.

Left to themselves, pictures split into groups that chase each other: while one group is in the U-Net, another is in
the ReferenceNet, and neither ever fills a batch. Here a group waits for the others before a large component, for as
long as a call of it takes; the others catch up within a few steps, and from then on all keep step. A picture that is
alone never waits.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from parure.modes import PRESETS, SHALLOW_UNET

MET = ("reference_net", "unet", SHALLOW_UNET)
PATIENCE = 1.0
"""The longest wait, as a share of the time of a recent call."""

LEAST_WAIT = 0.01  # seconds; short calls cost less than what is around them
_WEIGHT = 0.2  # of the newest call in the mean of recent ones


@dataclass
class _Place:
    """Before one component: how many wait, the number of the round they wait for, and seconds of a recent call."""

    waiting: int = 0
    round: int = 0
    seconds: float = 0.0

    def begin(self) -> None:
        self.round += 1
        self.waiting = 0


class Meetings:
    """One meeting per mode: pictures of two modes call different components, and would only hold each other up."""

    def __init__(self) -> None:
        self._meetings: weakref.WeakValueDictionary[str, Meeting] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        self._lasting = [self.of(name) for name in PRESETS]  # these keep what they learned of the calls' lengths

    def of(self, mode: str) -> Meeting:
        """Where pictures of `mode` meet; unless it has a name, it lasts for as long as one of them does."""
        with self._lock:
            meeting = self._meetings.get(mode)
            if meeting is None:
                meeting = self._meetings[mode] = Meeting()
            return meeting


class Meeting:
    """Safe to share between threads. A picture is expected from its first call on, until it leaves."""

    def __init__(self) -> None:
        self._expected: set[object] = set()
        self._places: dict[str, _Place] = defaultdict(_Place)
        self._changed = threading.Condition()

    @contextmanager
    def call(self, component: str, picture: object) -> Iterator[None]:
        """Around a call: waits until all that are expected have come, or for as long as it is worth."""
        if component not in MET:
            yield
            return
        self._wait(component, picture)
        since = time.perf_counter()
        yield
        with self._changed:
            place, spent = self._places[component], time.perf_counter() - since
            place.seconds = spent if not place.seconds else (1 - _WEIGHT) * place.seconds + _WEIGHT * spent

    def leave(self, picture: object) -> None:
        """Nobody waits for `picture` any more."""
        with self._changed:
            self._expected.discard(picture)
            self._begin_where_complete()

    def _wait(self, component: str, picture: object) -> None:
        with self._changed:
            place = self._places[component]
            self._expected.add(picture)
            place.waiting += 1
            mine = place.round
            self._begin_where_complete()
            longest = max(PATIENCE * place.seconds, LEAST_WAIT)
            if not self._changed.wait_for(lambda: place.round != mine, longest):
                place.begin()  # whoever has waited longest takes all along that are here
                self._changed.notify_all()

    def _begin_where_complete(self) -> None:
        for place in self._places.values():
            if place.waiting and place.waiting >= len(self._expected):
                place.begin()
                self._changed.notify_all()
