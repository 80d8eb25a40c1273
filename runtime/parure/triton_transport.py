"""The two ways to a Triton server, gRPC and HTTP, and the one place where their errors become parure's.

Messages are tritonclient's. The connections are grpc's and urllib3's own: both can be shared between threads,
and both bound a call by a deadline, which `tritonclient.http.InferenceServerClient` does not offer.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
import grpc.experimental  # type: ignore[import-untyped]
import numpy as np
import urllib3
from google.protobuf import json_format  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc  # type: ignore[import-untyped]
from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype  # type: ignore[import-untyped]
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, NewConnectionError
from urllib3.exceptions import TimeoutError as HttpTimeout

from parure.errors import (
    CallRefused,
    DeadlineExceeded,
    InputError,
    InvalidReply,
    ModelUnavailable,
    ServerError,
    ServerUnavailable,
)
from parure.executor import Array, Arrays
from parure.regions import Place
from parure.triton_regions import GrpcRegions, HttpRegions, RegionApi, refer, requested_outputs
from parure.wire import count

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
HEADER_LENGTH = "Inference-Header-Content-Length"
_CHUNK = 1 << 20
_CONNECTIONS = 32  # that are kept for reuse
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a failed connection of one executor must not hold back another's
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),
]
Places = Mapping[str, Place | None]
NO_PLACES: Places = {}
_INFER = "/inference.GRPCInferenceService/ModelInfer"


class Transport(Protocol):
    """Raises what its library raises, and `InvalidReply`; `translated` makes parure's errors of the former."""

    name: str

    def infer(
        self,
        model: str,
        inputs: Arrays,
        *,
        read: Places = NO_PLACES,
        write: Places = NO_PLACES,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """One inference: arrays with their batch dimension in, read-only arrays out.

        `read` says which inputs lie in shared memory. `write` names all outputs that are wanted, with the place of
        each, or None for one that comes in the message; without it all outputs do. `timeout`, in seconds, takes the
        place of the transport's deadline.
        """

    @property
    def regions(self) -> RegionApi:
        """What the server is told of shared memory."""

    def config(self, model: str) -> dict[str, Any]:
        """The configuration of `model`, as JSON with Triton's own field names."""

    def parameters(self, model: str) -> dict[str, str]:
        """The parameters in the configuration of `model`."""

    def version(self) -> str:
        """The server's version."""

    def live(self) -> bool:
        """Whether a server answers at all."""

    def close(self) -> None:
        """Close the connections; calls that are under way end with an error."""


class HttpStatus(Exception):
    """A reply other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def open_transport(
    url: str,
    deadline: float,
    *,
    grpc_kind: Callable[[str, float], Transport] | None = None,
    http_kind: Callable[[str, int, float], Transport] | None = None,
) -> Transport:
    """The transport for `grpc://host[:port]` or `http://host[:port]`; nothing is sent. Raises `InputError`."""
    try:
        parts = urlsplit(url)
        port = parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
        bare = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    except ValueError:
        port, bare = 0, False
    if parts.scheme not in DEFAULT_PORTS or not bare or not parts.hostname or not port:
        raise InputError(f"{url!r} is not the URL of a server; expected grpc://HOST:PORT or http://HOST:PORT")
    if parts.scheme == "grpc":
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return (grpc_kind or GrpcTransport)(f"{host}:{port}", deadline)
    return (http_kind or HttpTransport)(parts.hostname, port, deadline)


class GrpcTransport:
    name = "triton-grpc"

    def __init__(self, target: str, deadline: float) -> None:
        self._deadline = deadline
        self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = self._channel.unary_unary(_INFER)  # bytes to bytes: messages are counted as they are
        self.regions: RegionApi = GrpcRegions(self._stub)

    def infer(
        self, model: str, inputs: Arrays, *, read: Places = NO_PLACES, write: Places = NO_PLACES,
        timeout: float | None = None,
    ) -> dict[str, Array]:  # fmt: skip
        request = service_pb2.ModelInferRequest(model_name=model)
        for name, array in inputs.items():
            described = request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            if place := read.get(name):
                refer(described, place)
            else:
                request.raw_input_contents.append(np.asarray(array).tobytes())
        for name, place in write.items():
            output = request.outputs.add(name=name)
            if place:
                refer(output, place)
        message = request.SerializeToString()
        answer = self._infer(message, timeout=timeout or self._deadline)
        count(len(message), len(answer))
        with well_formed(model):
            reply = service_pb2.ModelInferResponse.FromString(answer)
        contents = reply.raw_output_contents
        if len(contents) != len(reply.outputs):
            raise InvalidReply(f"model {model!r} declared {len(reply.outputs)} outputs and sent {len(contents)}")
        return {
            output.name: _array(model, output.datatype, output.shape, write.get(output.name) or content)
            for output, content in zip(reply.outputs, contents, strict=True)
        }

    def config(self, model: str) -> dict[str, Any]:
        reply = self._stub.ModelConfig(service_pb2.ModelConfigRequest(name=model), timeout=self._deadline)
        found: dict[str, Any] = json_format.MessageToDict(reply.config, preserving_proto_field_name=True)
        return found

    def parameters(self, model: str) -> dict[str, str]:
        return _parameters(model, self.config(model))

    def version(self) -> str:
        request = service_pb2.ServerMetadataRequest()
        return str(self._stub.ServerMetadata(request, timeout=self._deadline).version)

    def live(self) -> bool:
        try:
            return bool(self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=self._deadline).live)
        except grpc.RpcError:
            return False

    def close(self) -> None:
        self._channel.close()


class _HttpConnection(HTTPConnection):
    """Known to its pool while it is open."""

    def __init__(self, *given: Any, opened: weakref.WeakSet[HTTPConnection], lock: threading.Lock, **named: Any):
        super().__init__(*given, **named)
        with lock:
            opened.add(self)


class _HttpPool(urllib3.HTTPConnectionPool):
    """Closing it also ends the exchanges that are under way, as closing a gRPC channel does."""

    ConnectionCls = _HttpConnection

    def __init__(self, host: str, port: int) -> None:
        self._opened: weakref.WeakSet[HTTPConnection] = weakref.WeakSet()
        self._lock = threading.Lock()
        named: dict[str, Any] = {"opened": self._opened, "lock": self._lock}  # for each connection
        super().__init__(host, port, maxsize=_CONNECTIONS, retries=False, **named)

    def close(self) -> None:
        super().close()
        with self._lock:
            sockets = [connection.sock for connection in self._opened]
        for each in filter(None, sockets):
            with suppress(OSError):  # it has just ended
                each.shutdown(socket.SHUT_RDWR)


class HttpTransport:
    """Triton's HTTP protocol with binary tensors."""

    name = "triton-http"

    def __init__(self, host: str, port: int, deadline: float) -> None:
        self._pool = _HttpPool(host, port)
        self._deadline = deadline
        self.regions: RegionApi = HttpRegions(
            lambda method, path, body, timeout: self._call(method, path, body, timeout=timeout)[1]
        )

    def infer(
        self, model: str, inputs: Arrays, *, read: Places = NO_PLACES, write: Places = NO_PLACES,
        timeout: float | None = None,
    ) -> dict[str, Array]:  # fmt: skip
        from tritonclient.http import InferenceServerClient, InferInput  # type: ignore[import-untyped]  # 0.2 s

        described = []
        for name, array in inputs.items():
            described.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            if place := read.get(name):
                described[-1].set_shared_memory(place.region.name, place.size, place.offset)
            else:
                described[-1].set_data_from_numpy(np.asarray(array))
        body, header_length = InferenceServerClient.generate_request_body(described, outputs=requested_outputs(write))
        headers = {} if header_length is None else {HEADER_LENGTH: str(header_length)}
        reply_headers, reply = self._call("POST", f"/v2/models/{model}/infer", body, headers, timeout)
        count(len(body), len(reply))
        with well_formed(model):
            length = reply_headers.get(HEADER_LENGTH)
            result = InferenceServerClient.parse_response_body(reply, header_length=length and int(length))
            return {
                output["name"]: _array(model, output["datatype"], output["shape"], place)
                if (place := write.get(output["name"]))
                else result.as_numpy(output["name"])
                for output in result.get_response()["outputs"]
            }

    def config(self, model: str) -> dict[str, Any]:
        _, reply = self._call("GET", f"/v2/models/{model}/config")
        with well_formed(model):
            return {**json.loads(reply)}

    def parameters(self, model: str) -> dict[str, str]:
        return _parameters(model, self.config(model))

    def version(self) -> str:
        _, reply = self._call("GET", "/v2")
        with well_formed("metadata"):
            return str(json.loads(reply)["version"])

    def live(self) -> bool:
        try:
            self._call("GET", "/v2/health/live")
        except (HttpStatus, HTTPError, TimeoutError):
            return False
        return True

    def close(self) -> None:
        self._pool.close()

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> tuple[Mapping[str, str], bytes]:
        """One exchange. Each wait is bounded by the deadline, and so is their sum, between the reply's parts."""
        seconds = timeout or self._deadline
        until = time.monotonic() + seconds
        response = self._pool.urlopen(
            method, path, body, headers, timeout=urllib3.Timeout(total=seconds), preload_content=False
        )
        try:
            parts = []
            while part := response.read1(_CHUNK):
                parts.append(part)
                if time.monotonic() > until:
                    raise TimeoutError("the reply was still coming")
        except BaseException:
            response.close()  # what is left on the connection belongs to this call
            raise
        response.release_conn()
        reply = b"".join(parts)
        if response.status != 200:
            raise HttpStatus(response.status, _error_text(reply))
        return response.headers, reply


def _array(model: str, datatype: str, shape: Any, content: bytes | Place) -> Array:
    with well_formed(model):
        dtype = triton_to_np_dtype(datatype)
        if isinstance(content, Place):
            return content.tensor(dtype, tuple(shape))
        return np.frombuffer(content, dtype).reshape(tuple(shape))


def _parameters(model: str, config: Mapping[str, Any]) -> dict[str, str]:
    with well_formed(model):
        return {key: str(value["string_value"]) for key, value in config.get("parameters", {}).items()}


@contextmanager
def well_formed(model: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, DecodeError) as error:
        raise InvalidReply(
            f"the reply of model {model!r} cannot be read ({error}); check that the address is Triton's, "
            "and that the server's Python has numpy<2"
        ) from error


def _error_text(reply: bytes) -> str:
    try:
        return str(json.loads(reply)["error"])
    except (ValueError, KeyError, TypeError):
        return reply[:200].decode(errors="replace")


_BY_GRPC_CODE: dict[Any, type[ServerError]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: ModelUnavailable,
    grpc.StatusCode.INVALID_ARGUMENT: CallRefused,
}
_BY_HTTP_STATUS: dict[int, type[ServerError]] = {
    400: CallRefused,
    404: ModelUnavailable,
    503: ServerUnavailable,
    504: DeadlineExceeded,
}
_ADVICE: dict[type[ServerError], str] = {
    ServerUnavailable: "{subject} cannot be reached ({what}); start it with `parure serve MODEL_REPOSITORY`, or retry",
    DeadlineExceeded: "{subject} did not answer within {deadline:g} s; raise the deadline, or see the server's load",
    ModelUnavailable: "{subject} is not there or not ready ({what}); serve the repository that `parure repo` wrote",
    CallRefused: "{subject} refused the call as wrong ({what}); is it of another version of parure?",
    ServerError: "{subject} refused the call ({what}); see the server's log",
}


@contextmanager
def translated(subject: str, deadline: float) -> Iterator[None]:
    """Library errors become `ServerError`s, by type and status code; `subject` begins the message."""
    try:
        yield
    except (grpc.RpcError, HttpStatus, HTTPError, OSError) as error:
        kind, what = _classify(error)
        raise kind(_ADVICE[kind].format(subject=subject, what=what, deadline=deadline)) from error


def _classify(error: Exception) -> tuple[type[ServerError], str]:
    """Which error it is, and what the server or the library said. Every other refusal is permanent: `ServerError`."""
    if isinstance(error, grpc.RpcError):
        return _BY_GRPC_CODE.get(error.code(), ServerError), f"{error.code().name}: {error.details()}"
    if isinstance(error, HttpStatus):
        return _BY_HTTP_STATUS.get(error.status, ServerError), f"HTTP {error.status}: {error}"
    if isinstance(error, TimeoutError | HttpTimeout) and not isinstance(error, NewConnectionError):
        return DeadlineExceeded, str(error)
    return ServerUnavailable, str(error) or type(error).__name__
