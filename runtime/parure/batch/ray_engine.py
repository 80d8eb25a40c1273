"""The same batch on a Ray cluster (extra `ray`): actors read, ask servers and keep results; this process decides.

Order, endpoints, retries and the ledger stay where they are, so that a batch is resumed, and loses nothing, in the
same way. Every node must reach the endpoints, the inputs and the output: URLs, or a file system that they share.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Any

from parure.batch.endpoint import Connection
from parure.batch.engine import Made, Prepared, ask, keep, output_name
from parure.batch.jobs import Job
from parure.batch.keys import Inputs, Reader, job_key
from parure.batch.store import open_store
from parure.errors import InputError, ParureError, ServerBusy, ServerError
from parure.manifest import Manifest
from parure.tryon import TryOn, open_tryon

THREADS = 64  # jobs that one actor holds at once
_KEPT = 128  # inputs that an actor keeps between reading them and asking for the picture


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
        actor = self._ray.remote(num_cpus=1, max_restarts=-1, max_concurrency=THREADS, scheduling_strategy="SPREAD")
        count = max(min(int(self._ray.cluster_resources().get("CPU", 1)), most), 1)
        self._actors = [actor(Worker).remote(out, manifest, identity, deadline) for _ in range(count)]
        self._load = [0] * count
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
        try:
            made: Made = self._call(self._actors[prepared.worker].make.remote(job, prepared.key, url))
        finally:
            with self._lock:
                self._load[prepared.worker] -= 1
        return made

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()

    def _call(self, reference: Any) -> Any:
        try:
            answer = self._ray.get(reference)
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
        self._open: dict[str, TryOn] = {}
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

    def make(self, job: Job, key: str, url: str) -> Made | ParureError:
        try:
            with self._lock:
                inputs = self._read.pop(key, None)
            result = ask(self._server(url), job, inputs or self._reader.read(job))
            return keep(self._store, output_name(job, key), result)
        except ServerError as error:
            with self._lock:
                self._open.pop(url, None)  # the server may have been started anew
            return error
        except ParureError as error:
            return error

    def _server(self, url: str) -> TryOn:
        with self._lock:
            if url not in self._open:
                self._open[url] = open_tryon(url, deadline=self._deadline, loop="server")
            return self._open[url]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(f"--engine ray needs {error.name}; run `pip install 'parure[batch,ray]'`") from error
    return ray
