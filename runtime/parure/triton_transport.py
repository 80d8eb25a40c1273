"""The two ways to a Triton server, gRPC and HTTP, and the one place where their errors become parure's.

Both are safe to share between threads, and bound a call, from connecting to the last byte, by a deadline.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc  # type: ignore[import-untyped]

from parure.errors import (
    DeadlineExceeded,
    InputError,
    InvalidReply,
    ModelUnavailable,
    ServerError,
    ServerUnavailable,
)

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
_HEADER_LENGTH = "Inference-Header-Content-Length"
_CHUNK = 1 << 20
_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a failed connection of one executor must not hold back another's
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


@dataclass(frozen=True)
class WireTensor:
    """A tensor as it travels: Triton's name of its type, its shape with the batch, its bytes (C order)."""

    datatype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview


class Transport(Protocol):
    """Raises what its library raises; `translated` makes parure's errors of it."""

    name: str

    def infer(self, model: str, inputs: Mapping[str, WireTensor]) -> dict[str, WireTensor]:
        """One inference."""

    def parameters(self, model: str) -> dict[str, str]:
        """The parameters in the configuration of `model`."""

    def live(self) -> bool:
        """Whether a server answers at all."""

    def close(self) -> None:
        """Close the connections."""


class HttpStatus(Exception):
    """A reply other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def open_transport(url: str, deadline: float) -> Transport:
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
        return GrpcTransport(f"{host}:{port}", deadline)
    return HttpTransport(parts.hostname, port, deadline)


class GrpcTransport:
    name = "triton-grpc"

    def __init__(self, target: str, deadline: float) -> None:
        self._deadline = deadline
        self._channel = grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, model: str, inputs: Mapping[str, WireTensor]) -> dict[str, WireTensor]:
        request = service_pb2.ModelInferRequest(model_name=model)
        for name, tensor in inputs.items():
            request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(bytes(tensor.data))
        reply = self._stub.ModelInfer(request, timeout=self._deadline)
        contents = reply.raw_output_contents
        if len(contents) != len(reply.outputs):
            raise InvalidReply(f"model {model!r} declared {len(reply.outputs)} outputs and sent {len(contents)}")
        return {
            output.name: WireTensor(output.datatype, tuple(output.shape), content)
            for output, content in zip(reply.outputs, contents, strict=True)
        }

    def parameters(self, model: str) -> dict[str, str]:
        reply = self._stub.ModelConfig(service_pb2.ModelConfigRequest(name=model), timeout=self._deadline)
        return {key: value.string_value for key, value in reply.config.parameters.items()}

    def live(self) -> bool:
        try:
            return bool(self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=self._deadline).live)
        except grpc.RpcError:
            return False

    def close(self) -> None:
        self._channel.close()


class HttpTransport:
    """Triton's HTTP protocol with binary tensors, over connections that are kept for reuse."""

    name = "triton-http"

    def __init__(self, host: str, port: int, deadline: float) -> None:
        self._address = (host, port)
        self._deadline = deadline
        self._idle: list[http.client.HTTPConnection] = []  # append and pop are atomic

    def infer(self, model: str, inputs: Mapping[str, WireTensor]) -> dict[str, WireTensor]:
        described = [
            {
                "name": name,
                "shape": tensor.shape,
                "datatype": tensor.datatype,
                "parameters": {"binary_data_size": len(tensor.data)},
            }
            for name, tensor in inputs.items()
        ]
        header = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
        body = b"".join([header, *(tensor.data for tensor in inputs.values())])
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(header))}
        reply_headers, reply = self._call("POST", f"/v2/models/{model}/infer", body, headers)
        with _well_formed(model):
            return _read_outputs(reply, int(reply_headers[_HEADER_LENGTH]))

    def parameters(self, model: str) -> dict[str, str]:
        _, reply = self._call("GET", f"/v2/models/{model}/config")
        with _well_formed(model):
            return {key: str(value["string_value"]) for key, value in json.loads(reply)["parameters"].items()}

    def live(self) -> bool:
        try:
            self._call("GET", "/v2/health/live")
        except (HttpStatus, OSError, http.client.HTTPException):
            return False
        return True

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _call(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytearray]:
        """One exchange; repeated only where a connection that was kept turns out to be closed by the server."""
        until = time.monotonic() + self._deadline
        while True:
            reused = bool(self._idle)
            connection = self._idle.pop() if reused else http.client.HTTPConnection(*self._address)
            try:
                status, reply_headers, reply = _exchange(connection, method, path, body, headers or {}, until)
            except (ConnectionError, http.client.HTTPException):
                connection.close()
                if not reused:
                    raise
            except BaseException:
                connection.close()
                raise
            else:
                self._idle.append(connection)
                break
        if status != http.HTTPStatus.OK:
            raise HttpStatus(status, _error_text(reply))
        return reply_headers, reply


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes,
    headers: Mapping[str, str],
    until: float,
) -> tuple[int, http.client.HTTPMessage, bytearray]:
    """Send and receive on one connection; a wait that lasts until `until` ends with `TimeoutError`."""
    connection.timeout = _left(until)
    if connection.sock is None:
        connection.connect()
    sock = connection.sock
    sock.settimeout(_left(until))
    connection.request(method, path, body=body, headers=dict(headers))
    sock.settimeout(_left(until))
    with connection.getresponse() as response:
        reply = bytearray(response.length or 0)
        received = 0
        while received < len(reply):
            sock.settimeout(_left(until))
            part = response.read1(min(_CHUNK, len(reply) - received))  # a single wait; `readinto` may wait many times
            if not part:
                raise http.client.IncompleteRead(bytes(reply[:received]), len(reply) - received)
            reply[received : received + len(part)] = part
            received += len(part)
        return response.status, response.headers, reply


def _left(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _read_outputs(reply: bytearray, header_length: int) -> dict[str, WireTensor]:
    outputs: dict[str, WireTensor] = {}
    rest = memoryview(reply)[header_length:]
    for output in json.loads(reply[:header_length])["outputs"]:
        size = int(output["parameters"]["binary_data_size"])
        shape = tuple(int(side) for side in output["shape"])
        outputs[str(output["name"])] = WireTensor(str(output["datatype"]), shape, rest[:size])
        rest = rest[size:]
    return outputs


@contextmanager
def _well_formed(model: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidReply(
            f"the reply of model {model!r} is not Triton's HTTP protocol ({error!r}); check the address"
        ) from error


def _error_text(reply: bytearray) -> str:
    try:
        return str(json.loads(reply)["error"])
    except (ValueError, KeyError, TypeError):
        return bytes(reply[:200]).decode(errors="replace")


_BY_GRPC_CODE: dict[Any, type[ServerError]] = {
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: ModelUnavailable,
}
_BY_HTTP_STATUS: dict[int, type[ServerError]] = {404: ModelUnavailable, 503: ServerUnavailable, 504: DeadlineExceeded}
_ADVICE: dict[type[ServerError], str] = {
    ServerUnavailable: "{subject} cannot be reached ({what}); start it with `parure serve MODEL_REPOSITORY`, or retry",
    DeadlineExceeded: "{subject} did not answer within {deadline:g} s; raise the deadline, or see the server's load",
    ModelUnavailable: "{subject} is not there or not ready ({what}); serve the repository that `parure repo` wrote",
    ServerError: "{subject} refused the call ({what}); see the server's log",
}


@contextmanager
def translated(subject: str, deadline: float) -> Iterator[None]:
    """Library errors become `ServerError`s, by type and status code; `subject` begins the message."""
    try:
        yield
    except (grpc.RpcError, HttpStatus, OSError, http.client.HTTPException) as error:
        kind, what = _classify(error)
        raise kind(_ADVICE[kind].format(subject=subject, what=what, deadline=deadline)) from error


def _classify(error: Exception) -> tuple[type[ServerError], str]:
    """Which error it is, and what the server or the library said. Every other refusal is permanent: `ServerError`."""
    if isinstance(error, grpc.RpcError):
        return _BY_GRPC_CODE.get(error.code(), ServerError), f"{error.code().name}: {error.details()}"
    if isinstance(error, HttpStatus):
        return _BY_HTTP_STATUS.get(error.status, ServerError), f"HTTP {error.status}: {error}"
    if isinstance(error, TimeoutError):
        return DeadlineExceeded, str(error)
    return ServerUnavailable, str(error) or type(error).__name__
