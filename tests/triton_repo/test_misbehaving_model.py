"""No silent empties: what a model of a real server gets wrong is an `InvalidReply`, also in shared memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from parure.errors import InvalidReply, ServerError
from parure.executor import Array, Arrays
from parure.shared_tensors import SharedMemory, SharedTensors
from parure.triton import TritonExecutor
from parure.triton_transport import NO_PLACES, GrpcTransport, Places
from parure_triton.server import EmbeddedServer

RIGHT, FEWER, EMPTY, MISSING, HALVED, MORE, NAN, INFINITE, REFUSED = range(9)  # as in models/misbehaving.py


def inputs_for(way: int, batch: int = 2) -> dict[str, Array]:
    latents = np.random.default_rng(way).standard_normal((batch, 4, 8, 8)).astype(np.float32)
    return {"latents": latents, "timestep": np.full(batch, way, np.float32)}


@pytest.fixture(params=["grpc", "http", "grpc shared", "http shared"])
def executor(request: pytest.FixtureRequest, misbehaving: EmbeddedServer) -> Iterator[TritonExecutor]:
    scheme, _, shared = request.param.partition(" ")
    memory = SharedMemory(least=1) if shared else None
    with TritonExecutor(getattr(misbehaving.addresses, scheme), deadline=20, shared_memory=memory) as opened:
        inputs = inputs_for(RIGHT)
        assert np.array_equal(opened.run("unet", inputs)["noise"], inputs["latents"])
        yield opened
        assert np.array_equal(opened.run("unet", inputs)["noise"], inputs["latents"])  # it is fit for use after all


@pytest.mark.parametrize("way", [FEWER, EMPTY, MISSING, HALVED, NAN, INFINITE])
def test_a_wrong_reply_is_invalid_and_names_model_and_output(executor: TritonExecutor, way: int) -> None:
    with pytest.raises(InvalidReply, match="unet"):
        executor.run("unet", inputs_for(way))


def test_a_reply_that_is_too_large_is_an_error(executor: TritonExecutor) -> None:
    with pytest.raises(ServerError, match="unet"):
        executor.run("unet", inputs_for(MORE))


def test_the_earlier_content_of_a_region_is_never_taken_for_a_reply(misbehaving: EmbeddedServer) -> None:
    """A server whose model writes nothing at all, though it says that it did: numpy 2 under Triton 2.51."""

    class Silent(GrpcTransport):
        def infer(
            self,
            model: str,
            inputs: Arrays,
            *,
            read: Places = NO_PLACES,
            write: Places = NO_PLACES,
            timeout: float | None = None,
        ) -> dict[str, Array]:
            return {name: place.tensor(np.float32, (1, 256)) for name, place in write.items() if place}

    url = misbehaving.addresses.grpc
    transport = Silent(url.removeprefix("grpc://"), 10)
    shared = SharedTensors(transport, url, 10, SharedMemory(least=1), first=1024)
    for _ in range(2):
        assert np.isnan(shared.infer("unet", {}, {"noise": 1024})["noise"]).all()
    shared.close()
    transport.close()
