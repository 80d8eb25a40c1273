"""One picture: read -> loop -> answer, and what is said of it where that fails."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from parure.components import Stopwatch
from parure.errors import Cancelled, InputError, ServerUnavailable
from parure.executor import Array
from parure.local_loop import LocalLoop, Made, Preview, Seen, Solvers
from parure.manifest import Manifest
from parure.modes import EXACT
from parure.ornaments import OrnamentCache
from parure.request import Request, read_request
from parure.tryon import compose
from parure.tryon_wire import (
    INPUTS,
    TRACE_PARAMETER,
    Call,
    coded,
    made_tensors,
    png,
    read_call,
    seen_tensors,
    timing_tensor,
)
from parure_triton.loop_model.bls import BlsExecutor
from parure_triton.loop_model.meeting import Meetings
from parure_triton.loop_model.metrics import Metrics

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

Code = Literal["INVALID_ARGUMENT", "CANCELLED", "UNAVAILABLE", "INTERNAL"]


@dataclass(frozen=True)
class Shop:
    """What all pictures of a model share."""

    manifest: Manifest
    identity: str
    solvers: Solvers
    ornaments: OrnamentCache
    metrics: Metrics
    log: logging.Logger
    meetings: Meetings
    features_on_gpu: bool
    streams: bool


@dataclass
class Picture:
    """A request of Triton's on its way. Its inputs are copied: nothing of the server's memory is held."""

    shop: Shop
    sender: Any
    request_id: str = ""
    trace: str | None = None
    wanted_outputs: frozenset[str] = frozenset()
    arrived: float = field(default_factory=time.monotonic)
    watch: Stopwatch = field(default_factory=Stopwatch)
    until: float = float("inf")
    call: Call | None = None
    mode: str = str(EXACT)
    steps: int = 0
    queue: float = 0.0
    ended: bool = False

    def gone(self) -> bool:
        return time.monotonic() > self.until or bool(self.sender.is_cancelled())

    def check(self) -> None:
        """Raises `Cancelled` once nobody waits for the picture any more."""
        if time.monotonic() > self.until:
            raise Cancelled(f"the deadline of {self.until - self.arrived:g} s has passed")
        if self.sender.is_cancelled():
            raise Cancelled("the caller gave up")

    def read(self, request: Any) -> None:
        """Understand what is asked for, without decoding pictures; raises `InputError`."""
        self.request_id = request.request_id() or uuid.uuid4().hex
        self.trace = json.loads(request.parameters() or "{}").get(TRACE_PARAMETER)
        self.wanted_outputs = frozenset(request.requested_output_names())
        self.call = read_call(_inputs(request))
        if self.call.deadline is not None:
            self.until = self.arrived + self.call.deadline
        if self.call.stream != "none" and not self.shop.streams:
            raise InputError(f"stream is {self.call.stream!r}; expected none: only the model tryon streams, over gRPC")

    def work(self) -> None:
        """Make the picture and answer; raises nothing."""
        self.queue = time.monotonic() - self.arrived
        self.watch = Stopwatch()
        try:
            self.check()
            assert self.call is not None, "read comes first"
            request = read_request(self.call.asked, self.shop.manifest)
            self.mode = str(request.options.mode)
            self._answer(self.call, request)
        except InputError as error:
            self.refuse("refused", str(error), "INVALID_ARGUMENT")
        except Cancelled as error:
            self.refuse("cancelled", str(error), "CANCELLED")
        except ServerUnavailable as error:
            self.refuse("failed", str(error), "UNAVAILABLE")
        except Exception as error:
            self.shop.log.exception("error", extra={"fields": {"request_id": self.request_id}})
            self.refuse("failed", f"{type(error).__name__}: {error}", "INTERNAL")

    def refuse(self, outcome: str, message: str, code: Code) -> None:
        """Answer with an error of that gRPC status code; raises nothing."""
        self._ended(outcome, message)
        tritons = getattr(pb_utils.TritonError, "INVALID_ARG" if code == "INVALID_ARGUMENT" else code)
        error = pb_utils.TritonError(coded(code, message) if self.shop.streams else message, tritons)
        with suppress(Exception):  # the answer was sent before, or nobody is there to take it
            self.sender.send(pb_utils.InferenceResponse(error=error), flags=_FINAL)

    def _answer(self, call: Call, request: Request) -> None:
        preview: Preview | None = None
        if call.stream != "none":
            preview = "none" if call.stream == "masks" else call.stream
        with closing(self._loop(request, preview)) as steps:
            for seen in steps:
                self.check()
                tensors = seen_tensors(seen)
                if seen.made is not None:
                    tensors |= _final(call, request, seen.made, self.shop.manifest, self.queue)
                    self._ended("made")
                    self._send(tensors, _FINAL)
                elif preview is not None:
                    self._send(tensors, 0)

    def _loop(self, request: Request, preview: Preview | None) -> Generator[Seen, None, None]:
        shop = self.shop
        executor = BlsExecutor(
            shop.manifest,
            shop.identity,
            self.check,
            self.request_id,
            {} if self.trace is None else {TRACE_PARAMETER: self.trace},
            shop.features_on_gpu,
            shop.meetings.of(self.mode),
        )
        loop = LocalLoop(executor, shop.solvers, shop.ornaments, ahead=True)
        with closing(loop), closing(loop.run(request, preview, self.watch)) as steps:
            for seen in steps:
                self.steps = seen.step
                shop.metrics.step()
                yield seen

    def _send(self, tensors: dict[str, Array], flags: int) -> None:
        chosen = [pb_utils.Tensor(name, array) for name, array in tensors.items() if name in self.wanted_outputs]
        self.sender.send(pb_utils.InferenceResponse(chosen), flags=flags)

    def _ended(self, outcome: str, message: str = "") -> None:
        """Count and log, once: before the caller knows, so that whoever has an answer finds it counted."""
        if self.ended:
            return
        self.ended = True
        shop, seconds = self.shop, time.monotonic() - self.arrived
        shop.metrics.ended(outcome, seconds, self.watch.seconds)
        shop.metrics.ornaments(shop.ornaments.hits, shop.ornaments.misses, shop.ornaments.bytes)
        fields = {
            "request_id": self.request_id,
            "traceparent": self.trace,
            "outcome": outcome,
            "mode": self.mode,
            "steps": self.steps,
            "seconds": round(seconds, 4),
            "queue_seconds": round(self.queue, 4),
            "parts": {part: round(sum(values), 4) for part, values in self.watch.seconds.items()},
        }
        shop.log.info("picture", extra={"fields": fields | ({"message": message} if message else {})})


def _inputs(request: Any) -> dict[str, Array]:
    found = ((t.name, pb_utils.get_input_tensor_by_name(request, t.name)) for t in INPUTS)
    return {name: np.array(tensor.as_numpy()) for name, tensor in found if tensor is not None}


def _final(call: Call, request: Request, made: Made, manifest: Manifest, queue: float) -> dict[str, Array]:
    tensors = made_tensors(made)
    if call.wanted == "photo":
        result = compose(request, made, manifest.geometry)
        tensors |= {"picture": png(np.asarray(result.image)), "mask": png(np.asarray(result.mask))}
    return tensors | {"timings": timing_tensor(made, queue)}
