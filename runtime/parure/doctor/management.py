"""Which of Triton's management APIs answer to whoever asks. Asking reads, or is refused: it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import urllib3
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped]
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

from parure.finding import Finding
from parure.locality import is_local
from parure.triton_transport import DEFAULT_PORTS

_NOBODY = "parure-doctor-asks"  # no model has this name


@dataclass(frozen=True)
class Api:
    """One call that only reads; `body` None asks with GET. `harm`: what an open one lets strangers do."""

    name: str
    path: str
    body: str | None
    call: str
    message: Any
    harm: str
    severe: bool = True


APIS = (
    Api(
        "model-repository", "repository/index", "{}", "RepositoryIndex", pb.RepositoryIndexRequest(),
        "list models, and load or unload them where model control is open",
    ),
    Api(
        "shared-memory", "systemsharedmemory/status", None, "SystemSharedMemoryStatus",
        pb.SystemSharedMemoryStatusRequest(), "have the server read and write any shared memory of its user",
    ),
    Api(
        "statistics", "models/stats", None, "ModelStatistics", pb.ModelStatisticsRequest(),
        "see how much others use the server", severe=False,
    ),
    Api(
        "trace", "trace/setting", None, "TraceSetting", pb.TraceSettingRequest(),
        "have the server trace, and write, what they choose",
    ),
    Api("logging", "logging", None, "LogSettings", pb.LogSettingsRequest(), "switch the server's log off, or fill its disk"),
)  # fmt: skip


def open_apis(url: str, deadline: float) -> Iterator[Finding]:
    """One finding per API over the protocol of `url`; the other protocol has restrictions of its own.

    On this host, shared memory may be open on purpose: that is only a warning.
    """
    parts = urlsplit(url)
    where = f"{parts.hostname}:{parts.port or DEFAULT_PORTS[parts.scheme]}"
    if parts.scheme == "http":
        yield from _findings(url, lambda api: _over_http(where, api, deadline))
        yield from model_control(_http_status(where, f"repository/models/{_NOBODY}/load", "{}", deadline) == 500)
        return
    with grpc.insecure_channel(where) as channel:
        stub = GRPCInferenceServiceStub(channel)
        yield from _findings(url, lambda api: _grpc_code(stub, api.call, api.message, deadline) is None)
        load = pb.RepositoryModelLoadRequest(model_name=_NOBODY)
        code = _grpc_code(stub, "RepositoryModelLoad", load, deadline)
        yield from model_control(code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))


def _findings(url: str, answers: Callable[[Api], bool]) -> Iterator[Finding]:
    flag = "--http-restricted-api" if url.startswith("http") else "--grpc-restricted-protocol"
    for api in APIS:
        if not answers(api):
            yield Finding(f"{api.name} API", True, "answers to holders of the key only")
            continue
        meant = api.name == "shared-memory" and is_local(url)
        remedy = f"restrict it: {flag}={api.name}:NAME=KEY; `parure repo --deploy` and `parure serve` do"
        passed = None if meant or not api.severe else False
        yield Finding(f"{api.name} API", passed, f"open: whoever reaches the port can {api.harm}", remedy)


def model_control(tried: bool) -> Iterator[Finding]:
    """`tried`: the server looked for the model that it was asked to load, rather than refuse to load any."""
    if tried:
        remedy = "start the server with --model-control-mode=none"
        yield Finding("model control", False, "open: whoever reaches the port can replace models", remedy)
    else:
        yield Finding("model control", True, "no model can be loaded or unloaded from here")


def _over_http(where: str, api: Api, deadline: float) -> bool:
    return _http_status(where, api.path, api.body, deadline) == 200


def _http_status(where: str, path: str, body: str | None, deadline: float) -> int:
    """0 where nothing answers in time."""
    method = "GET" if body is None else "POST"
    with urllib3.PoolManager() as connections:  # one that stays open would hold up a server that ends
        try:
            reply = connections.request(method, f"http://{where}/v2/{path}", body=body, timeout=deadline, retries=False)
        except (HTTPError, OSError):
            return 0
        return reply.status


def _grpc_code(stub: Any, call: str, message: Any, deadline: float) -> Any:
    """None where the call is answered. A restricted API is UNAVAILABLE, and so is loading where that is off."""
    try:
        getattr(stub, call)(message, timeout=deadline)
    except grpc.RpcError as error:
        return error.code()
    return None
