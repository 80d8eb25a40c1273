"""What a Triton server is told about shared memory, over gRPC and over HTTP."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from parure.regions import Place

Kind = Literal["system", "cuda"]


class RegionApi(Protocol):
    """Raises what its library raises. `timeout` is in seconds."""

    def register_system(self, name: str, key: str, size: int, timeout: float) -> None:
        """Have the server map the POSIX shared memory object `key`."""

    def register_cuda(self, name: str, handle: bytes, device: int, size: int, timeout: float) -> None:
        """Have the server map the device memory of `handle`, the bytes of a `cudaIpcMemHandle_t`."""

    def unregister(self, kind: Kind, name: str, timeout: float) -> None:
        """Have the server forget a region; refused while a call uses it, no error for one that it does not know."""

    def registered(self, kind: Kind, timeout: float) -> set[str]:
        """The names of the regions that the server knows."""


class GrpcRegions:
    def __init__(self, stub: Any) -> None:
        self._stub = stub

    def register_system(self, name: str, key: str, size: int, timeout: float) -> None:
        request = service_pb2.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=0, byte_size=size)
        self._stub.SystemSharedMemoryRegister(request, timeout=timeout)

    def register_cuda(self, name: str, handle: bytes, device: int, size: int, timeout: float) -> None:
        request = service_pb2.CudaSharedMemoryRegisterRequest(
            name=name, raw_handle=handle, device_id=device, byte_size=size
        )
        self._stub.CudaSharedMemoryRegister(request, timeout=timeout)

    def unregister(self, kind: Kind, name: str, timeout: float) -> None:
        if kind == "system":
            request = service_pb2.SystemSharedMemoryUnregisterRequest(name=name)
            self._stub.SystemSharedMemoryUnregister(request, timeout=timeout)
        else:
            request = service_pb2.CudaSharedMemoryUnregisterRequest(name=name)
            self._stub.CudaSharedMemoryUnregister(request, timeout=timeout)

    def registered(self, kind: Kind, timeout: float) -> set[str]:
        if kind == "system":
            request = service_pb2.SystemSharedMemoryStatusRequest()
            return set(self._stub.SystemSharedMemoryStatus(request, timeout=timeout).regions)
        request = service_pb2.CudaSharedMemoryStatusRequest()
        return set(self._stub.CudaSharedMemoryStatus(request, timeout=timeout).regions)


class HttpRegions:
    """`call(method, path, body, timeout)` gives the reply's body."""

    def __init__(self, call: Callable[[str, str, bytes | None, float], bytes]) -> None:
        self._call = call

    def register_system(self, name: str, key: str, size: int, timeout: float) -> None:
        self._register("system", name, {"key": key, "offset": 0, "byte_size": size}, timeout)

    def register_cuda(self, name: str, handle: bytes, device: int, size: int, timeout: float) -> None:
        encoded = {"b64": base64.b64encode(handle).decode()}
        self._register("cuda", name, {"raw_handle": encoded, "device_id": device, "byte_size": size}, timeout)

    def unregister(self, kind: Kind, name: str, timeout: float) -> None:
        self._call("POST", f"/v2/{kind}sharedmemory/region/{name}/unregister", b"", timeout)

    def registered(self, kind: Kind, timeout: float) -> set[str]:
        reply = json.loads(self._call("GET", f"/v2/{kind}sharedmemory/status", None, timeout))
        return {region["name"] for region in reply}

    def _register(self, kind: Kind, name: str, fields: dict[str, object], timeout: float) -> None:
        self._call("POST", f"/v2/{kind}sharedmemory/region/{name}/register", json.dumps(fields).encode(), timeout)


def refer(tensor: Any, place: Place) -> None:
    """Say in a gRPC message that `tensor` lies in shared memory."""
    tensor.parameters["shared_memory_region"].string_param = place.region.name
    tensor.parameters["shared_memory_byte_size"].int64_param = place.size
    tensor.parameters["shared_memory_offset"].int64_param = place.offset


def requested_outputs(write: Mapping[str, Place | None]) -> list[Any] | None:
    """Outputs as HTTP asks for them; none named: all of them, as bytes."""
    from tritonclient.http import InferRequestedOutput  # type: ignore[import-untyped]  # 0.2 s

    requested = []
    for name, place in write.items():
        requested.append(InferRequestedOutput(name, binary_data=True))
        if place:
            requested[-1].set_shared_memory(place.region.name, place.size, place.offset)
    return requested or None
