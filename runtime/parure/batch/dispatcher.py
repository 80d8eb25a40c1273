"""Jobs meet places: the least loaded endpoint that may be given work takes the next job.

An endpoint that fails a call is out at once, and a probe, a real call to every model there, decides whether it comes
back; until then its jobs go to the others. This is the only place where anything is tried again.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from parure.batch.endpoint import Connect, Connection, Endpoint, check_same
from parure.batch.order import Order, Task
from parure.batch.stopping import Cause, Stop
from parure.errors import BundleMismatch, ParureError, ServerUnavailable
from parure.manifest import Manifest

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0  # seconds before a probe, doubled each time
SLOW = 5.0  # times the median pace of the others
_SLOW_PAUSE = 10.0
_SAMPLES = 8
_TICK = 0.5


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job, the endpoint that is to make it, and the connection that this had when it was chosen."""

    task: Task
    endpoint: Endpoint
    connection: Connection


class Dispatcher:
    """Safe to share between threads."""

    def __init__(
        self,
        connect: Connect,
        check: Callable[[str], None],
        live: Callable[[str], bool],
        stop: Stop,
        order: Order,
        patience: float,
    ) -> None:
        """`check` raises `ServerError` for an endpoint that must not come back; `live`: whether it answers at all.

        `patience`: seconds without any endpoint after which the batch ends.
        """
        self._connect, self._check, self._live, self._stop, self._patience = connect, check, live, stop, patience
        self._order = order
        self._endpoints: dict[str, Endpoint] = {}
        self._connections: dict[Connection, Endpoint] = {}  # those that are open: in use, or with calls under way
        self._manifest: Manifest | None = None
        self._identity: str | None = None
        self._outstanding = 0
        self._ended = False
        self._idle_since: float | None = None
        lock = threading.RLock()
        self._changed, self._room = threading.Condition(lock), threading.Condition(lock)  # for workers, for the reader

    @property
    def manifest(self) -> Manifest:
        assert self._manifest is not None, "start comes first"
        return self._manifest

    @property
    def identity(self) -> str:
        assert self._identity is not None, "start comes first"
        return self._identity

    @property
    def places(self) -> int:
        """How many pictures may be on their way at once."""
        return sum(endpoint.places for endpoint in self.endpoints)

    @property
    def endpoints(self) -> list[Endpoint]:
        return list(self._endpoints.values())

    def start(self, urls: Sequence[str]) -> None:
        """Open all endpoints at once. Raises `ServerUnavailable` where none answers, `BundleMismatch` where they differ."""
        for url in urls:
            self._endpoints[url] = Endpoint(url)
        with ThreadPoolExecutor(min(len(urls), 32)) as pool:
            found = list(pool.map(self._try_connect, urls))
        for url, connection in zip(urls, found, strict=True):
            if isinstance(connection, Connection):
                self._identity = self._identity or connection.identity
                self._manifest = self._manifest or connection.manifest
                check_same(connection.identity, self._identity, url)
        opened = [(url, one) for url, one in zip(urls, found, strict=True) if isinstance(one, Connection)]
        if not opened:
            raise ServerUnavailable("no endpoint answers: " + "; ".join(str(reason) for reason in found))
        for url, connection in opened:
            self._admit(self._endpoints[url], connection)
        for url, reason in zip(urls, found, strict=True):
            if not isinstance(reason, Connection):
                self._eject(self._endpoints[url], str(reason))

    def add(self, urls: Iterable[str]) -> None:
        """Endpoints that were not known before; they are given work once they answer."""
        with self._changed:
            for url in urls:
                if url not in self._endpoints:
                    self._endpoints[url] = Endpoint(url)
                    self._eject(self._endpoints[url], "new")

    def offer(self, task: Task) -> bool:
        """Take a job in, once there is room in the window; False where the batch is to stop."""
        with self._changed:
            while self._order.full and not self._stop.asked:
                self._room.wait(_TICK)
            if self._stop.asked:
                return False
            self._order.add(task)
            self._changed.notify()
            return True

    def end(self) -> None:
        """No more jobs will be offered."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def next(self) -> Assignment | None:
        """Waits for a job and a place for it; None when all is done, or the batch is to stop."""
        with self._changed:
            while not self._stop.asked:
                if self._over:
                    return None
                if (assignment := self._assign()) is not None:
                    self._room.notify()
                    return assignment
                self._check_patience()
                self._changed.wait(_TICK)
            return None

    def release(self, assignment: Assignment, seconds_per_step: float | None = None) -> None:
        """The job has ended; with its pace where the endpoint made the picture."""
        with self._changed:
            self._leave(assignment)
            self._outstanding -= 1
            if seconds_per_step is not None:
                assignment.endpoint.succeeded(seconds_per_step)
                self._eject_if_slow(assignment.endpoint)
            self._tell()

    def put_back(self, assignment: Assignment, pause: float) -> None:
        """The job will be tried again, by whichever endpoint takes it, after `pause` seconds."""
        with self._changed:
            self._leave(assignment)
            self._tell()
        self._stop.wait(pause)
        with self._changed:
            self._outstanding -= 1
            self._order.add(assignment.task, first=True)
            self._tell()

    def look(self) -> None:
        """To be called now and then. A server that holds work and says nothing is asked whether it lives; connections
        that have been left are closed."""
        now = time.monotonic()
        with self._changed:
            silent = [
                (connection, endpoint)
                for connection, endpoint in self._connections.items()
                if connection.calls and not connection.given_up and now - connection.heard > endpoint.patience
            ]
            for connection, _ in silent:
                connection.heard = now
            left = [c for c, endpoint in self._connections.items() if not c.calls and c is not endpoint.connection]
            for connection in left:
                del self._connections[connection]
        for connection, endpoint in silent:
            name = f"ask {endpoint.url}"
            threading.Thread(target=self._ask, args=(connection, endpoint), name=name, daemon=True).start()
        for connection in left:
            connection.close()

    def suspect(self, assignment: Assignment, why: str) -> None:
        """A call failed, and perhaps not by the job's fault."""
        with self._changed:
            if assignment.connection is assignment.endpoint.connection:  # else it is known, or was in an earlier life
                self._eject(assignment.endpoint, why)

    def close(self) -> None:
        for connection in list(self._connections):
            connection.close()

    @property
    def _over(self) -> bool:
        return self._ended and not len(self._order) and not self._outstanding

    def _tell(self) -> None:
        """A place or a job has come: one worker can use it. At the end all must know."""
        if self._over:
            self._changed.notify_all()
        else:
            self._changed.notify()

    def _assign(self) -> Assignment | None:
        free = [e for e in self._endpoints.values() if e.connection is not None and e.load < e.places]
        if not free or not len(self._order):
            return None
        endpoint = min(free, key=lambda e: (e.fullness, e.done))
        task = self._order.take(endpoint.url)
        assert task is not None and endpoint.connection is not None
        connection = endpoint.connection
        if not connection.calls:
            connection.heard = time.monotonic()
        connection.calls += 1
        endpoint.load += 1
        self._outstanding += 1
        return Assignment(task, endpoint, connection)

    def _leave(self, assignment: Assignment) -> None:
        """A call has ended, one way or another."""
        assignment.connection.heard = time.monotonic()
        assignment.connection.calls -= 1
        assignment.endpoint.load -= 1

    def _check_patience(self) -> None:
        now = time.monotonic()
        if any(endpoint.open for endpoint in self._endpoints.values()):
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        elif now - self._idle_since > self._patience:
            reasons = "; ".join(f"{endpoint.url}: {endpoint.why}" for endpoint in self._endpoints.values())
            self._stop.ask(Cause(f"no endpoint has answered for {self._patience:g} s ({reasons})"))
            self._changed.notify_all()

    def _try_connect(self, url: str) -> Connection | ParureError:
        """A frozen server is found out by a short question, not by the deadline of a picture."""
        try:
            if not self._live(url):
                return ServerUnavailable(f"{url} does not answer; start a server there, or leave it out")
            return self._connect(url)
        except ParureError as error:
            return error

    def _admit(self, endpoint: Endpoint, connection: Connection) -> None:
        with self._changed:
            self._connections[connection] = endpoint
            endpoint.connection = connection
            endpoint.why, endpoint.paced = "", 0
            self._changed.notify_all()

    def _eject(self, endpoint: Endpoint, why: str, pause: float | None = None) -> None:
        with self._changed:
            endpoint.connection = None
            endpoint.why = why
            self._order.forget(endpoint.url)
            self._changed.notify_all()
        threading.Thread(
            target=self._revive, args=(endpoint, pause or FIRST_PAUSE), name=f"probe {endpoint.url}", daemon=True
        ).start()

    def _revive(self, endpoint: Endpoint, pause: float) -> None:
        """Probe until it answers."""
        while not self._stop.wait(pause * random.uniform(0.75, 1.25)):
            try:
                self._check(endpoint.url)
                connection = self._connect(endpoint.url)
            except ParureError as error:
                endpoint.why = str(error)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            try:
                check_same(connection.identity, self.identity, endpoint.url)
            except BundleMismatch as error:
                connection.close()
                endpoint.why = str(error)
                pause = LONGEST_PAUSE
                continue
            self._admit(endpoint, connection)
            return

    def _ask(self, connection: Connection, endpoint: Endpoint) -> None:
        """Where a server is frozen, only giving its calls up lets their jobs go elsewhere before the deadline."""
        if self._live(endpoint.url):
            return
        with self._changed:
            connection.given_up = True
            if connection is endpoint.connection:
                self._eject(endpoint, "it says nothing")
        connection.close()

    def _eject_if_slow(self, endpoint: Endpoint) -> None:
        """One that is far behind the others holds up the end of the batch; it is out for a while, and tried anew."""
        others = [e.pace for e in self._endpoints.values() if e is not endpoint and e.open and e.paced >= _SAMPLES]
        if not endpoint.open or endpoint.paced < _SAMPLES or not others:
            return
        usual = statistics.median(others)
        if endpoint.pace > SLOW * usual:
            why = f"slow: {endpoint.pace:.3g} s a step, the others {usual:.3g} s"
            self._eject(endpoint, why, _SLOW_PAUSE)
