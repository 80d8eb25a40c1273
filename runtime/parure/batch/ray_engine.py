"""The same batch on a Ray cluster (extra `ray`): actors read, ask servers and keep results; this process decides.

Order, endpoints, retries and the ledger stay where they are, so that a batch is resumed, and loses nothing, in the
same way. Every node must reach the endpoints, the inputs and the output: URLs, or a file system that they share.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from parure.batch.endpoint import Connection
from parure.batch.engine import Made, Prepared, ask, keep, output_name
from parure.batch.jobs import Job
from parure.batch.keys import Inputs, Reader, job_key
from parure.batch.store import open_store
from parure.errors import InputError, ParureError, ServerBusy, ServerUnavailable
from parure.manifest import Manifest
from parure.tryon import TryOn, open_tryon

THREADS = 64  # jobs that one actor holds at once
_KEPT = 128  # inputs that an actor keeps between reading them and asking for the picture
_CONTROL = "control"  # calls that must not wait until a thread is free
_TICK = 1.0  # seconds after which a call that is under way sees that its server was given up


class RayEngine:
    """As `Engine`. At most one actor per CPU of the cluster; one that dies is started anew, and its jobs go to the others."""

    def __init__(
        self, out: str, manifest: Manifest, identity: str, deadline: float, address: str | None, most: int
    ) -> None:
        """Joins the cluster at `address`, or that of RAY_ADDRESS; else starts one on this host. `most`: actors."""
        self._ray = _ray()
        self._started = not self._ray.is_initialized()
        if self._started:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            self._ray.init(address=address, log_to_driver=False)
        actor = self._ray.remote(
            num_cpus=1,
            max_restarts=-1,
            max_concurrency=THREADS,
            concurrency_groups={_CONTROL: 1},
            scheduling_strategy="SPREAD",
        )
        count = max(min(int(self._ray.cluster_resources().get("CPU", 1)), most), 1)
        self._actors = [actor(Worker).remote(out, manifest, identity, deadline) for _ in range(count)]
        self._load = [0] * count
        self._known: set[str] = set()  # keys of connections
        self._lock = threading.Lock()

    def prepare(self, job: Job) -> Prepared:
        with self._lock:
            worker = self._load.index(min(self._load))
            self._load[worker] += 1
        try:
            key: str = self._call(self._actors[worker].prepare.remote(job))
        finally:
            with self._lock:
                self._load[worker] -= 1
        return Prepared(key, worker=worker)

    def make(self, job: Job, prepared: Prepared, url: str, connection: Connection) -> Made:
        assert prepared.worker is not None
        with self._lock:
            self._load[prepared.worker] += 1
            if connection.key not in self._known:
                self._known.add(connection.key)
                connection.also.callback(self._leave, connection.key)
        try:
            reference = self._actors[prepared.worker].make.remote(job, prepared.key, url, connection.key)
            while not self._ray.wait([reference], timeout=_TICK)[0]:
                if connection.given_up:
                    raise ServerUnavailable(f"{url} says nothing")
            made: Made = self._call(reference)
        finally:
            with self._lock:
                self._load[prepared.worker] -= 1
        return made

    def close(self) -> None:
        actors, self._actors = self._actors, []
        for actor in actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()

    def _leave(self, key: str) -> None:
        for actor in self._actors:
            actor.leave.options(concurrency_group=_CONTROL).remote(key)

    def _call(self, reference: Any) -> Any:
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # a mistake in the code
            raise error.cause from error
        except self._ray.exceptions.RayError as error:  # as with a full server: nobody's fault, and worth another try
            raise ServerBusy(f"a worker of the Ray cluster was lost ({type(error).__name__}); try again") from error
        if isinstance(answer, ParureError):
            raise answer
        return answer


class Worker:
    """What runs in an actor. Errors of parure are returned: raised, Ray would wrap them in types of its own."""

    def __init__(self, out: str, manifest: Manifest, identity: str, deadline: float) -> None:
        self._store, self._manifest, self._identity, self._deadline = open_store(out), manifest, identity, deadline
        self._reader = Reader()
        self._read: OrderedDict[str, Inputs] = OrderedDict()
        self._open: dict[str, Future[TryOn]] = {}
        self._lock = threading.Lock()

    def prepare(self, job: Job) -> str | ParureError:
        """The key of the job."""
        try:
            inputs = self._reader.read(job)
        except ParureError as error:
            return error
        key = job_key(job, inputs, self._manifest, self._identity)
        with self._lock:
            self._read[key] = inputs
            if len(self._read) > _KEPT:
                self._read.popitem(last=False)
        return key

    def make(self, job: Job, key: str, url: str, connection: str) -> Made | ParureError:
        try:
            with self._lock:
                inputs = self._read.pop(key, None)
            result = ask(self._server(url, connection), job, inputs or self._reader.read(job))
            return keep(self._store, output_name(job, key), result)
        except ParureError as error:
            return error

    def leave(self, connection: str) -> None:
        """Ends what is under way there."""
        with self._lock:
            opened = self._open.pop(connection, None)
        if opened is not None:
            opened.add_done_callback(_close)

    def _server(self, url: str, connection: str) -> TryOn:
        """Opened by the first that asks for it: the others wait, but nobody who asks for another one."""
        with self._lock:
            opened = self._open.get(connection)
            if first := opened is None:
                opened = self._open[connection] = Future()
        if first:
            try:
                opened.set_result(open_tryon(url, deadline=self._deadline, loop="server"))
            except BaseException as error:
                with self._lock:
                    self._open.pop(connection, None)
                opened.set_exception(error)
        return opened.result()


def _close(opened: Future[TryOn]) -> None:
    if opened.exception() is None:
        opened.result().close()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--engine ray needs {error.name}; run `pip install 'parure[batch,ray]'`") from error
    return ray
