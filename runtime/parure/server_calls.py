"""The calls of the server loop: a gRPC stream of responses, or one reply over HTTP."""

from __future__ import annotations

import copy
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Protocol

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]
from tritonclient.utils import (  # type: ignore[import-untyped]
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from parure.errors import (
    CallRefused,
    DeadlineExceeded,
    InvalidReply,
    ModelUnavailable,
    ServerBusy,
    ServerError,
    ServerUnavailable,
)
from parure.executor import Array, Arrays
from parure.triton_transport import (
    HEADER_LENGTH,
    GrpcTransport,
    HttpStatus,
    HttpTransport,
    Transport,
    open_transport,
    translated,
    well_formed,
)
from parure.tryon_wire import OUTPUTS, TRACE_PARAMETER, TRYON_MODEL, UNARY_MODEL, code_of
from parure.wire import count

Responses = Generator[dict[str, Array], None, None]
_STREAM_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
_CLIENT_CLOSED_REQUEST = 499  # what Triton makes of CANCELLED
_OF_INPUTS = re.compile(r"\binputs?\b")
_OUTPUT_NAMES = [tensor.name for tensor in OUTPUTS]


class PictureCalls(Transport, Protocol):
    """A transport that can also ask for pictures."""

    streams: bool

    def start(self, inputs: Arrays, timeout: float, identifier: str, trace: str | None) -> Responses:
        """The responses to one request, once the first has come; closing them cancels the call."""


def open_calls(url: str, deadline: float) -> PictureCalls:
    """As `open_transport`."""
    transport = open_transport(url, deadline, grpc_kind=GrpcCalls, http_kind=HttpCalls)
    assert isinstance(transport, GrpcCalls | HttpCalls)
    return transport


@contextmanager
def picture_errors(calls: PictureCalls, subject: str, deadline: float) -> Iterator[None]:
    """As `translated`; a server that is alive and UNAVAILABLE is full: `ServerBusy`."""
    try:
        with translated(subject, deadline):
            yield
    except ServerBusy:
        raise
    except ServerUnavailable as error:
        if not calls.live():
            raise
        raise ServerBusy(f"{subject} takes no more pictures for now ({_said(error)}); retry, or add servers") from error


def _said(error: ServerUnavailable) -> str:
    """What the server itself said."""
    cause: Any = error.__cause__
    return str(cause.details() if hasattr(cause, "details") else cause)


class StreamError(grpc.RpcError):  # type: ignore[misc]
    """An error that came as text in a stream: status code and message, as those of calls that fail as a whole."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self._code, self._message = getattr(grpc.StatusCode, code, grpc.StatusCode.UNKNOWN), message

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._message


class GrpcCalls(GrpcTransport):
    streams = True

    def __init__(self, target: str, deadline: float) -> None:
        super().__init__(target, deadline)
        # One request and many responses: the same on the wire as Triton's stream of requests, without grpc's thread
        # that feeds one, and the caller itself waits for what comes.
        self._stream = self._channel.unary_stream(
            _STREAM_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )

    def start(self, inputs: Arrays, timeout: float, identifier: str, trace: str | None) -> Responses:
        request = service_pb2.ModelInferRequest(model_name=TRYON_MODEL, id=identifier)
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
            request.raw_input_contents.append(_packed(array))
        for name in _OUTPUT_NAMES:
            request.outputs.add(name=name)
        if trace is not None:
            request.parameters[TRACE_PARAMETER].string_param = trace
        metadata = None if trace is None else [(TRACE_PARAMETER, trace)]
        count(request.ByteSize(), 0)
        return _primed(self._responses(self._stream(request, timeout=timeout, metadata=metadata)))

    def _responses(self, call: Any) -> Responses:
        try:
            for message in call:
                count(0, message.ByteSize())
                if message.error_message:
                    _let_end(call)
                    self._refuse(message.error_message)
                reply = message.infer_response
                if len(reply.raw_output_contents) != len(reply.outputs):
                    raise InvalidReply(f"model {TRYON_MODEL!r} declared {len(reply.outputs)} outputs and sent others")
                with well_formed(TRYON_MODEL):
                    outputs = {
                        output.name: _unpacked(output.datatype, output.shape, content)
                        for output, content in zip(reply.outputs, reply.raw_output_contents, strict=True)
                    }
                if "picture" in outputs:
                    _let_end(call)
                yield outputs
        finally:
            call.cancel()  # of no effect on a call that has ended

    def _refuse(self, said: str) -> NoReturn:
        """Raises what was said. What Triton itself refuses has no status code in a stream: inputs that are not those of
        the model, a model whose process has died, or a server that is about to end."""
        if (found := code_of(said)) is not None:
            raise StreamError(*found)
        if self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=self._deadline).ready:
            kind = CallRefused if _OF_INPUTS.search(said) else ServerError
            raise kind(f"model {TRYON_MODEL!r} refused the call ({said})")
        raise ModelUnavailable(f"model {TRYON_MODEL!r} takes no more calls ({said}); try again, or elsewhere")


class HttpCalls(HttpTransport):
    streams = False

    def start(self, inputs: Arrays, timeout: float, identifier: str, trace: str | None) -> Responses:
        from tritonclient.http import (  # type: ignore[import-untyped]  # 0.2 s
            InferenceServerClient,
            InferInput,
            InferRequestedOutput,
        )

        described = []
        for name, array in inputs.items():
            described.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            described[-1].set_data_from_numpy(array)
        body, header_length = InferenceServerClient.generate_request_body(
            described,
            outputs=[InferRequestedOutput(name) for name in _OUTPUT_NAMES if name != "preview"],
            request_id=identifier,
            parameters=None if trace is None else {TRACE_PARAMETER: trace},
        )
        headers = {HEADER_LENGTH: str(header_length)} | ({} if trace is None else {TRACE_PARAMETER: trace})
        bounded = copy.copy(self)
        bounded._deadline = timeout
        try:
            reply_headers, reply = bounded._call("POST", f"/v2/models/{UNARY_MODEL}/infer", body, headers)
            count(len(body), len(reply))
        except HttpStatus as error:
            if error.status == _CLIENT_CLOSED_REQUEST:
                raise DeadlineExceeded(f"model {UNARY_MODEL!r} gave the picture up: {error}") from error
            raise
        with well_formed(UNARY_MODEL):
            result = InferenceServerClient.parse_response_body(reply, header_length=int(reply_headers[HEADER_LENGTH]))
            names = [output["name"] for output in result.get_response()["outputs"]]
            return _primed(_once({name: result.as_numpy(name) for name in names}))


def _once(outputs: dict[str, Array]) -> Responses:
    yield outputs


def _primed(responses: Responses) -> Responses:
    """The same responses, of which the first has already come."""

    def all_of_them() -> Responses:
        try:
            if first is not None:
                yield first
            yield from responses
        finally:
            responses.close()

    first = next(responses, None)
    return all_of_them()


def _let_end(call: Iterator[Any]) -> None:
    """Waits until the server ends a call of which nothing more is wanted.

    Cancelled between its last response and its end, a call leaves Triton holding the request for ever: memory that is
    never given back, and a model that cannot be unloaded, so that the server's shutdown takes its whole exit timeout.
    """
    with suppress(grpc.RpcError):  # what was wanted has come
        for _ in call:
            pass


def _packed(array: Array) -> bytes:
    return bytes(serialize_byte_tensor(array).item()) if array.dtype == np.object_ else array.tobytes()


def _unpacked(datatype: str, shape: Any, content: bytes) -> Array:
    if datatype == "BYTES":
        array: Array = deserialize_bytes_tensor(content).reshape(tuple(shape))
        return array
    return np.frombuffer(content, triton_to_np_dtype(datatype)).reshape(tuple(shape))
