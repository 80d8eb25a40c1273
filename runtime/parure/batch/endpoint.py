"""One server of a batch: what it can hold, how it does, and whether it may be given work."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from parure.errors import BundleMismatch, ServerError
from parure.health import probe
from parure.manifest import Manifest
from parure.server_loop import ServerLoop
from parure.triton_transport import open_transport
from parure.tryon import TryOn, open_tryon

AHEAD = 0.5  # pictures that are prepared or wait while a server works, as a share of those that it works on
SILENCE = 15.0  # seconds without an answer after which an endpoint is asked whether it lives, at least
_PROBE_SECONDS = 10.0
_PACE_WEIGHT = 0.2


@dataclass(eq=False)
class Connection:
    """A server that answers: `places` pictures may be on their way to it at once.

    `calls` and `heard` are guarded by the dispatcher's lock. Whoever opens something for this connection elsewhere
    knows it by its `key`, and has it closed by a callback of `also`.
    """

    tryon: TryOn
    manifest: Manifest
    identity: str
    places: int
    calls: int = 0
    heard: float = 0.0  # when it last answered, or began to hold work
    given_up: bool = False  # its calls were ended from here, because its server says nothing
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    also: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Ends the calls that are under way. May be called more than once."""
        self.also.close()
        self.tryon.close()


Connect = Callable[[str], Connection]


@dataclass(frozen=True)
class Connector:
    """Opens servers; `places` None: what each says that it takes."""

    deadline: float
    places: int | None = None

    def __call__(self, url: str) -> Connection:
        """Raises `ServerError`, `InputError`."""
        tryon = open_tryon(url, deadline=self.deadline, loop="server")
        assert isinstance(tryon.loop, ServerLoop)
        capacity = tryon.loop.capacity
        ahead = min(max(round(capacity.at_work * AHEAD), 2), capacity.waiting)
        return Connection(tryon, tryon.manifest, tryon.loop.identity, self.places or capacity.at_work + ahead)


def check_alive(url: str) -> None:
    """One real call to every model; raises `ServerError` naming the first that does not answer."""
    for finding in probe(url, _PROBE_SECONDS):
        if finding.passed is False:
            raise ServerError(f"{url}: {finding.subject}: {finding.found}")


def is_live(url: str) -> bool:
    """Whether the server answers at all."""
    transport = open_transport(url, _PROBE_SECONDS)
    try:
        return transport.live()
    finally:
        transport.close()


@dataclass
class Endpoint:
    """Guarded by the dispatcher's lock. `load` counts the calls of earlier connections, too: the server may be at them."""

    url: str
    connection: Connection | None = None
    load: int = 0
    done: int = 0
    why: str = ""
    pace: float = 0.0  # seconds of a step, recently
    paced: int = 0

    @property
    def open(self) -> bool:
        return self.connection is not None

    @property
    def places(self) -> int:
        return 0 if self.connection is None else self.connection.places

    @property
    def fullness(self) -> float:
        return self.load / self.places if self.places else 1.0

    @property
    def patience(self) -> float:
        """Seconds of silence that are nothing unusual."""
        return SILENCE + 50 * self.pace

    def succeeded(self, seconds_per_step: float) -> None:
        self.done += 1
        self.paced += 1
        self.pace = seconds_per_step if self.paced == 1 else self.pace + _PACE_WEIGHT * (seconds_per_step - self.pace)


def check_same(identity: str, expected: str, url: str) -> None:
    """All pictures of a batch come from one bundle."""
    if identity != expected:
        raise BundleMismatch(
            f"{url} serves bundle {identity[:12]}..., this batch runs on {expected[:12]}...; serve that bundle there, "
            "or leave the endpoint out"
        )
