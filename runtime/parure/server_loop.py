"""The loop on the server: one request per picture, to the models `tryon` (gRPC, streaming) or `tryon_unary` (HTTP)."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

import stamina

from parure.errors import (
    BundleMismatch,
    DeadlineExceeded,
    InputError,
    InvalidReply,
    ModelUnavailable,
    RequestError,
    ServerBusy,
)
from parure.executor import Array
from parure.local_loop import LocalLoop, Loop, Preview, Seen, Solvers
from parure.locality import require_consent, require_local
from parure.manifest import Manifest
from parure.request import Request
from parure.server_calls import PictureCalls, Responses, open_calls, picture_errors
from parure.shared_tensors import SharedMemory
from parure.tracing import current_traceparent
from parure.triton import BUNDLE_PARAMETER, TritonExecutor
from parure.triton_transport import translated
from parure.tryon_wire import AT_WORK_PARAMETER, TRYON_MODEL, WAITING_PARAMETER, call_tensors, read_seen
from parure.wire import Meter, metered


@dataclass(frozen=True)
class Capacity:
    """How many pictures the server takes at once: in work, and waiting behind them."""

    at_work: int
    waiting: int


def open_remote(
    url: str,
    deadline: float,
    where: str | None = None,
    shared_memory: bool | SharedMemory = False,
    allow_wire_features: bool = False,
) -> Loop:
    """The loop for the server at `url`; arguments, and what is raised, as in `open_tryon`."""
    if shared_memory:
        require_local(url)
        if where == "server":
            raise InputError("loop is 'server', which shares no memory with its clients; drop one of the two")
        where = "client"
    calls = open_calls(url, deadline)
    shared = SharedMemory() if shared_memory is True else (shared_memory or None)
    executor = TritonExecutor(url, deadline=deadline, transport=calls, shared_memory=shared)
    try:
        if where != "client":
            try:
                return ServerLoop(executor, calls, deadline)
            except ModelUnavailable:
                if where == "server":
                    raise
        require_consent(url, executor.manifest, allowed=allow_wire_features)
        return LocalLoop(executor, Solvers(executor.solver), ahead=True)
    except BaseException:
        executor.close()
        raise


class ServerLoop:
    """Asks the server for whole pictures. Safe to share between threads.

    No more requests are under way at once than the server takes, so one client alone is never refused. Where others
    have filled the server, the request is repeated with jitter until the deadline; nothing else is repeated.
    """

    place: Literal["client", "server"] = "server"

    def __init__(self, executor: TritonExecutor, calls: PictureCalls, deadline: float) -> None:
        """Raises `ModelUnavailable` where the server has no server loop, `BundleMismatch` for one of another bundle."""
        self._executor, self._calls, self._deadline = executor, calls, deadline
        self.capacity = self._served_capacity()
        self._places = threading.BoundedSemaphore(self.capacity.at_work + self.capacity.waiting)

    @property
    def manifest(self) -> Manifest:
        return self._executor.manifest

    @property
    def name(self) -> str:
        return self._executor.name

    @property
    def identity(self) -> str:
        return self._executor.identity

    def run(self, request: Request, preview: Preview | None) -> Generator[Seen, None, None]:
        """As `Loop.run`; the deadline covers the whole picture, waiting included."""
        if preview not in (None, "none") and not self._calls.streams:
            raise RequestError(
                f"preview is {preview!r}, but over HTTP Triton does not stream; use grpc://, loop='client', or "
                "preview='none'"
            )
        return self._run(request, preview)

    def close(self) -> None:
        self._executor.close()

    def _run(self, request: Request, preview: Preview | None) -> Generator[Seen, None, None]:
        since = time.monotonic()
        if not self._places.acquire(timeout=self._deadline):
            raise DeadlineExceeded(
                f"the picture found no place at {self._executor.url} within {self._deadline:g} s: this client has "
                f"{self.capacity.at_work + self.capacity.waiting} under way; raise the deadline, or add servers"
            )
        try:
            meter = Meter()
            with metered(meter):
                responses = self._started(request, preview, since + self._deadline)
            try:
                yield from self._seen(responses, request, since, meter)
            finally:
                responses.close()
        finally:
            self._places.release()

    def _started(self, request: Request, preview: Preview | None, until: float) -> Responses:
        """Responses whose first one has come: from then on the server works on it, and it is not repeated."""
        identifier, trace = uuid.uuid4().hex, current_traceparent()
        busy: ServerBusy | None = None
        for attempt in stamina.retry_context(
            on=ServerBusy, attempts=None, timeout=self._left(until), wait_initial=0.1, wait_max=2.0
        ):
            with attempt:
                try:
                    with self._errors():
                        left = self._left(until)
                        inputs = call_tensors(request, preview, left, self.manifest.geometry)
                        return self._calls.start(inputs, left, identifier, trace)
                except ServerBusy as error:
                    busy = error
                    raise
                except DeadlineExceeded as error:
                    raise busy or error from error.__cause__  # the reason that there was no time left
        raise AssertionError("the retry ended without an attempt")

    def _seen(self, responses: Responses, request: Request, since: float, meter: Meter) -> Generator[Seen, None, None]:
        while True:
            with self._errors(), metered(meter):
                outputs: dict[str, Array] | None = next(responses, None)
            if outputs is None:
                raise InvalidReply(f"model {TRYON_MODEL!r} at {self._executor.url} ended without a picture")
            seen = read_seen(outputs, request, self.manifest.geometry)
            if seen.made is None:
                yield seen
                continue
            seconds = seen.made.seconds
            network = time.monotonic() - since - seconds["total"] - seconds["queue"]
            seconds |= {"network": max(network, 0.0), "total": time.monotonic() - since}
            yield replace(seen, made=replace(seen.made, wire=meter.wire))
            return

    def _served_capacity(self) -> Capacity:
        subject = f"model {TRYON_MODEL!r} at {self._executor.url}"
        with translated(subject, self._deadline):
            parameters = self._calls.parameters(TRYON_MODEL)
        served = parameters.get(BUNDLE_PARAMETER, "none")
        if served != self._executor.identity:
            raise BundleMismatch(
                f"{subject} comes from bundle {served[:12]}..., the manifest there from "
                f"{self._executor.identity[:12]}...; write the repository again and restart the server"
            )
        return Capacity(int(parameters[AT_WORK_PARAMETER]), int(parameters[WAITING_PARAMETER]))

    def _left(self, until: float) -> float:
        return max(until - time.monotonic(), 0.001)

    def _errors(self) -> AbstractContextManager[None]:
        return picture_errors(self._calls, f"model {TRYON_MODEL!r} at {self._executor.url}", self._deadline)
