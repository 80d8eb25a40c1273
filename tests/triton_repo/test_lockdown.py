"""Promise 19: whoever has no key can infer, and do nothing else to a server that parure started."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from parure.triton import TritonExecutor
from parure_triton.flags import ADMIN_HEADER, CLOSED_APIS, locked_down
from parure_triton.server import EmbeddedServer

pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")

# Every call of Triton that is not inference, health, metadata or configuration: API, HTTP path, body (None: GET).
HTTP_CALLS = [
    ("model-repository", "repository/index", {}),
    ("model-repository", "repository/models/unet/load", {}),
    ("model-repository", "repository/models/unet/unload", {}),
    ("shared-memory", "systemsharedmemory/status", None),
    ("shared-memory", "systemsharedmemory/region/x/register", {"key": "/x", "offset": 0, "byte_size": 1}),
    ("shared-memory", "systemsharedmemory/region/x/unregister", {}),
    ("shared-memory", "systemsharedmemory/unregister", {}),
    ("shared-memory", "cudasharedmemory/status", None),
    (
        "shared-memory",
        "cudasharedmemory/region/x/register",
        {"raw_handle": {"b64": ""}, "device_id": 0, "byte_size": 1},
    ),
    ("shared-memory", "cudasharedmemory/region/x/unregister", {}),
    ("shared-memory", "cudasharedmemory/unregister", {}),
    ("statistics", "models/stats", None),
    ("statistics", "models/unet/stats", None),
    ("statistics", "models/unet/versions/1/stats", None),
    ("trace", "trace/setting", None),
    ("trace", "trace/setting", {"trace_level": ["TIMESTAMPS"]}),
    ("trace", "models/unet/trace/setting", None),
    ("logging", "logging", None),
    ("logging", "logging", {"log_verbose_level": 1}),
]
GRPC_CALLS = [
    ("model-repository", "RepositoryIndex", pb.RepositoryIndexRequest()),
    ("model-repository", "RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="unet")),
    ("model-repository", "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="unet")),
    ("shared-memory", "SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
    ("shared-memory", "SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="x", key="/x", byte_size=1)),
    ("shared-memory", "SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest()),
    ("shared-memory", "CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest()),
    ("shared-memory", "CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="x", byte_size=1)),
    ("shared-memory", "CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest()),
    ("statistics", "ModelStatistics", pb.ModelStatisticsRequest(name="unet")),
    ("trace", "TraceSetting", pb.TraceSettingRequest(model_name="unet")),
    ("logging", "LogSettings", pb.LogSettingsRequest()),
]  # fmt: skip
IDS = [f"{path}{'' if body is None else ' POST'}" for _, path, body in HTTP_CALLS]


@pytest.fixture(scope="module")
def stub(server: EmbeddedServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.addresses.grpc.removeprefix("grpc://")) as channel:
        yield GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def key(server: EmbeddedServer) -> str:
    """The administrator's key, which only who may look at the server's process can know."""
    flag = next(arg for arg in psutil.Process(server.pid).cmdline() if arg.startswith("--http-restricted-api"))
    return flag.rpartition("=")[2]


@pytest.fixture(autouse=True)
def _unharmed(server: EmbeddedServer) -> Iterator[None]:
    """After every attempt the models are there and answer."""
    yield
    with TritonExecutor(server.addresses.grpc, deadline=20) as executor:
        inputs = {"latents": np.zeros((1, 4, 8, 8), np.float32), "timestep": np.zeros(1, np.float32)}
        assert executor.run("unet", inputs)["noise"].shape == (1, 4, 8, 8)


def http_status(server: EmbeddedServer, path: str, body: object, headers: dict[str, str]) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.addresses.http}/v2/{path}", data=data, headers=headers)
    try:
        return int(urllib.request.urlopen(request, timeout=30).status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("headers", [{}, {ADMIN_HEADER: "guess"}, {ADMIN_HEADER: ""}], ids=["no key", "wrong", "empty"])
@pytest.mark.parametrize(("_api", "path", "body"), HTTP_CALLS, ids=IDS)
def test_over_http_administration_is_denied_without_the_key(
    server: EmbeddedServer, _api: str, path: str, body: object, headers: dict[str, str]
) -> None:
    assert http_status(server, path, body, headers) == 403


@pytest.mark.parametrize(
    "metadata", [(), ((f"triton-grpc-protocol-{ADMIN_HEADER}", "guess"),)], ids=["no key", "wrong"]
)
@pytest.mark.parametrize(("_api", "call", "message"), GRPC_CALLS, ids=[call for _, call, _ in GRPC_CALLS])
def test_over_grpc_administration_is_denied_without_the_key(
    stub: GRPCInferenceServiceStub, _api: str, call: str, message: object, metadata: tuple[tuple[str, str], ...]
) -> None:
    invoke: Callable[..., object] = getattr(stub, call)
    with pytest.raises(grpc.RpcError) as refused:
        invoke(message, metadata=metadata, timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "restricted" in refused.value.details()


def test_with_the_key_the_same_calls_are_reached(
    server: EmbeddedServer, stub: GRPCInferenceServiceStub, key: str
) -> None:
    """So it is the key that they lack, and not that the path is wrong."""
    for path in ("models/stats", "trace/setting", "logging", "systemsharedmemory/status"):
        assert http_status(server, path, None, {ADMIN_HEADER: key}) == 200
    found = stub.RepositoryIndex(
        pb.RepositoryIndexRequest(), metadata=((f"triton-grpc-protocol-{ADMIN_HEADER}", key),), timeout=5
    )
    assert {model.name for model in found.models} == {"manifest", "mask_head", "tryon", "tryon_unary", "unet"}


def test_even_with_the_key_models_cannot_be_changed(server: EmbeddedServer, key: str) -> None:
    """Model control is off: there is nothing that could be loaded or unloaded."""
    for action in ("load", "unload"):
        assert http_status(server, f"repository/models/unet/{action}", {}, {ADMIN_HEADER: key}) >= 400


def test_every_closed_api_is_tried_over_both_protocols() -> None:
    for calls in (HTTP_CALLS, GRPC_CALLS):
        assert {api for api, *_ in calls} == set(CLOSED_APIS)


def test_shared_memory_opens_only_when_asked_and_alone() -> None:
    shut, opened = locked_down("key", 10), locked_down("key", 10, client_shared_memory=True)
    assert opened == [flag.replace("shared-memory,", "") for flag in shut] != shut
