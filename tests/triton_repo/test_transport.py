"""Errors of the libraries become parure's by type and code; HTTP keeps its deadline and survives closed connections."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from tritonclient.grpc import service_pb2
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from parure.errors import CallRefused, DeadlineExceeded, InvalidReply, ModelUnavailable, ServerError, ServerUnavailable
from parure.triton import TritonExecutor
from parure.triton_transport import GrpcTransport, HttpStatus, open_transport, translated

POOL = HTTPConnectionPool("127.0.0.1")
Talk = Callable[[socket.socket], None]


class _Rpc(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "what the server said"


def kind_of(error: Exception) -> type[Exception]:
    with pytest.raises(ServerError) as raised, translated("model 'unet' at URL", 2):
        raise error
    assert raised.value.__cause__ is error
    assert str(raised.value).startswith("model 'unet' at URL")
    return raised.type


GRPC_KINDS = {
    "UNAVAILABLE": ServerUnavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "NOT_FOUND": ModelUnavailable,
    "INVALID_ARGUMENT": CallRefused,
}


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_every_grpc_code_has_its_error(code: grpc.StatusCode) -> None:
    assert kind_of(_Rpc(code)) is GRPC_KINDS.get(code.name, ServerError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (HttpStatus(400, "wrong shape"), CallRefused),
        (HttpStatus(403, "restricted"), ServerError),
        (HttpStatus(404, "unknown model"), ModelUnavailable),
        (HttpStatus(500, "not healthy"), ServerError),
        (HttpStatus(501, "decoupled"), ServerError),
        (HttpStatus(503, "Exceeds maximum queue size"), ServerUnavailable),
        (TimeoutError(), DeadlineExceeded),
        (ConnectionRefusedError(111, "refused"), ServerUnavailable),
        (ConnectionResetError(104, "reset"), ServerUnavailable),
        (ReadTimeoutError(POOL, "/", "read timed out"), DeadlineExceeded),
        (ConnectTimeoutError("connect timed out"), DeadlineExceeded),
        (ProtocolError("closed"), ServerUnavailable),
        (NewConnectionError(POOL, "refused"), ServerUnavailable),
        (NameResolutionError("nowhere", POOL, socket.gaierror(-2, "no such host")), ServerUnavailable),
        (PermissionError(13, "denied"), ServerUnavailable),
    ],
)
def test_every_http_failure_has_its_error(error: Exception, kind: type[Exception]) -> None:
    assert kind_of(error) is kind


@contextmanager
def listening(*talks: Talk) -> Iterator[str]:
    """A server that has each of `talks` on a connection of its own; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            for talk in talks:
                connection, _ = listener.accept()
                with connection:
                    talk(connection)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(60)


def answering(*replies: bytes, pause: float = 0) -> Talk:
    """Answers requests with `replies`, one each, with pauses in their bodies; then closes the connection."""

    def talk(connection: socket.socket) -> None:
        for reply in replies:
            connection.recv(1 << 16)
            head, _, body = reply.partition(b"\r\n\r\n")
            for part in (head + b"\r\n\r\n", *(body[i : i + 1] for i in range(len(body)))) if pause else (reply,):
                try:
                    connection.sendall(part)
                except OSError:
                    return
                time.sleep(pause)

    return talk


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


PARAMETERS = ok(b'{"parameters": {"bundle": {"string_value": "b"}}}')


def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    with listening(answering(PARAMETERS), answering(PARAMETERS)) as url:
        transport = open_transport(url, 5)
        for _ in range(2):
            assert transport.parameters("unet") == {"bundle": "b"}
            time.sleep(0.05)
        transport.close()


def test_a_fresh_connection_that_is_closed_is_an_error_and_not_repeated() -> None:
    with listening(answering(b"")) as url, pytest.raises(ProtocolError):
        open_transport(url, 5).parameters("unet")


def test_the_deadline_covers_the_whole_reply() -> None:
    with listening(answering(PARAMETERS, pause=0.2)) as url:
        since = time.monotonic()
        with pytest.raises(TimeoutError):
            open_transport(url, 0.3).parameters("unet")
        assert time.monotonic() - since < 4  # the whole reply takes 9


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_closing_ends_the_calls_that_are_under_way(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        transport = open_transport(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}", 300)
        call = pool.submit(transport.parameters, "unet")
        connection, _ = silent.accept()
        with connection:
            assert connection.recv(1)
            assert not call.done()
            transport.close()
            assert isinstance(call.exception(30), grpc.RpcError if scheme == "grpc" else ProtocolError)


def test_a_truncated_reply_is_an_error() -> None:
    with listening(answering(PARAMETERS[:-5])) as url, pytest.raises(ProtocolError):
        open_transport(url, 5).parameters("unet")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"parameters": 1}'])
def test_a_reply_that_is_not_tritons_is_invalid(body: bytes) -> None:
    with listening(answering(ok(body))) as url, pytest.raises(InvalidReply, match="cannot be read"):
        open_transport(url, 5).parameters("unet")


def test_a_restricted_server_is_permanent_over_http() -> None:
    body = b'{"error":"This API is restricted"}'
    refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with listening(answering(refusal)) as url, pytest.raises(ServerError, match="HTTP 403: This API") as refused:
        TritonExecutor(url)
    assert refused.type is ServerError


def test_a_restricted_server_is_permanent_over_grpc(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = GrpcTransport("127.0.0.1:1", 1)

    def refuse(*_: object) -> None:
        raise _Rpc(grpc.StatusCode.UNAVAILABLE)

    monkeypatch.setattr(transport, "infer", refuse)
    monkeypatch.setattr(transport, "live", lambda: True)
    with pytest.raises(ServerError, match="alive but refuses inference") as refused:
        TritonExecutor("grpc://127.0.0.1:1", transport=transport)
    assert refused.type is ServerError


def test_a_grpc_reply_with_too_few_bytes_is_invalid_and_names_the_known_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = GrpcTransport("127.0.0.1:1", 1)
    reply = service_pb2.ModelInferResponse(raw_output_contents=[b""])
    reply.outputs.add(name="noise", datatype="FP32", shape=[1, 4])
    monkeypatch.setattr(transport, "_infer", lambda *_, **__: reply.SerializeToString())
    with pytest.raises(InvalidReply, match=r"size 0 into shape .*numpy<2"):
        transport.infer("unet", {})


def test_an_http_reply_with_too_few_bytes_is_invalid() -> None:
    header = (
        b'{"outputs": [{"name": "noise", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}]}'
    )
    reply = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n%s"
    body = header + b"\0" * 8
    with (
        listening(answering(reply % (len(header), len(body), body))) as url,
        pytest.raises(InvalidReply, match="size 2 into shape"),
    ):
        open_transport(url, 5).infer("unet", {})
