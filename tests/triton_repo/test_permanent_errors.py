"""What will not get better is not tried again: one attempt, as the server or the transport counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from parure.errors import CallRefused, ModelUnavailable, ServerError, SharedMemoryRefused
from parure.executor import Array, Arrays
from parure.shared_tensors import SharedMemory
from parure.triton import TritonExecutor
from parure.triton_transport import NO_PLACES, Places, Transport, open_transport
from parure_triton import flags
from parure_triton.server import EmbeddedServer

REFUSED, ASKED = 8, 10  # as in models/misbehaving.py
WAYS = ["grpc", "http", "grpc shared", "http shared"]


class Counting:
    """A transport that counts the messages to each model, and sends those to the U-Net to `instead`."""

    def __init__(self, inner: Transport, instead: str = "unet") -> None:
        self.inner = inner
        self.name = inner.name
        self.regions = inner.regions
        self.instead = instead
        self.calls: list[str] = []

    def infer(
        self,
        model: str,
        inputs: Arrays,
        *,
        read: Places = NO_PLACES,
        write: Places = NO_PLACES,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        self.calls.append(model)
        model = self.instead if model == "unet" else model
        return self.inner.infer(model, inputs, read=read, write=write, timeout=timeout)

    def parameters(self, model: str) -> dict[str, str]:
        self.calls.append(f"parameters of {model}")
        return self.inner.parameters(model)

    def version(self) -> str:
        return self.inner.version()

    def live(self) -> bool:
        return self.inner.live()

    def close(self) -> None:
        self.inner.close()


def inputs_for(way: int = 0) -> dict[str, Array]:
    return {"latents": np.zeros((1, 4, 8, 8), np.float32), "timestep": np.full(1, way, np.float32)}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, SharedMemory | None]:
    scheme, _, shared = request.param.partition(" ")
    return scheme, SharedMemory(least=1) if shared else None


@pytest.fixture
def counted(
    way: tuple[str, SharedMemory | None], misbehaving: EmbeddedServer
) -> Iterator[tuple[TritonExecutor, Counting]]:
    url = getattr(misbehaving.addresses, way[0])
    transport = Counting(open_transport(url, 20))
    with TritonExecutor(url, transport=transport, shared_memory=way[1]) as executor:
        transport.calls.clear()
        yield executor, transport


def test_an_invalid_argument_reaches_the_model_once(counted: tuple[TritonExecutor, Counting]) -> None:
    executor, transport = counted
    before = executor.run("unet", inputs_for(ASKED))["noise"].max()
    transport.calls.clear()
    with pytest.raises(ServerError) as refused:
        executor.run("unet", inputs_for(REFUSED))
    assert refused.type is CallRefused and transport.calls == ["unet"]
    assert executor.run("unet", inputs_for(ASKED))["noise"].max() - before == 1


def test_a_model_that_is_not_there_is_asked_for_once(counted: tuple[TritonExecutor, Counting]) -> None:
    """Also with shared memory, though a server that forgot its regions answers by the same code."""
    executor, transport = counted
    transport.instead = "nowhere"
    with pytest.raises(ModelUnavailable, match="nowhere"):
        executor.run("unet", inputs_for())
    assert transport.calls == ["unet"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_restricted_inference_is_tried_once(scheme: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "CLOSED_APIS", (*flags.CLOSED_APIS, "inference"))
    with EmbeddedServer(repository) as server:
        server.wait_ready(60)
        url = getattr(server.addresses, scheme)
        transport = Counting(open_transport(url, 20))
        with pytest.raises(ServerError, match="restricted") as refused:
            TritonExecutor(url, transport=transport)
    assert refused.type is ServerError and transport.calls == ["manifest"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_restricted_shared_memory_is_tried_once(scheme: str, server: EmbeddedServer) -> None:
    url = getattr(server.addresses, scheme)
    transport = open_transport(url, 20)
    attempts: list[str] = []
    register = transport.regions.register_system

    def counting(name: str, key: str, size: int, timeout: float) -> None:
        attempts.append(name)
        register(name, key, size, timeout)

    transport.regions.register_system = counting  # type: ignore[method-assign]
    with pytest.raises(SharedMemoryRefused):
        TritonExecutor(url, transport=transport, shared_memory=SharedMemory())
    assert len(attempts) == 1
