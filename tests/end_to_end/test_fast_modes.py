"""Fast modes through a real Triton: the in-process picture of the same mode, alone and in company."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

import parure
from parure.errors import RequestError
from parure.health import probe
from parure.image import Pixels
from parure.tryon_wire import png
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

pytestmark = pytest.mark.xdist_group("deep reuse")  # one worker exports the bundle


BOX = (30.3, 40.0, 70.0, 75.0)
MODES = ("fast", "mask=2,guidance=0.5,deep=2")


@pytest.fixture(scope="module")
def server(deep_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    folder = tmp_path_factory.mktemp("fast_modes")
    write_repository(deep_bundle, folder / "models", options=RepositoryOptions.of(threads=1))
    with EmbeddedServer(folder / "models", log=folder / "triton.log") as running:
        running.wait_ready()
        yield running


@pytest.fixture(scope="module")
def local(deep_bundle: Path) -> Iterator[parure.TryOn]:
    with parure.open(deep_bundle, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("transport", "loop"), [("grpc", "server"), ("http", "server"), ("grpc", "client"), ("http", "client")]
)
def test_a_served_mode_is_the_in_process_one_bit_for_bit(
    mode: str, transport: str, loop: str, server: EmbeddedServer, local: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:  # fmt: skip
    expected = local(photo, ornament, BOX, steps=6, mode=mode)
    with parure.open(getattr(server.addresses, transport), loop=loop) as tryon:  # type: ignore[arg-type]
        result = tryon(photo, ornament, BOX, steps=6, mode=mode)
    assert np.array_equal(result.latents, expected.latents)
    assert np.array_equal(np.asarray(result.image), np.asarray(expected.image))
    assert result.mode == expected.mode and result.spared == expected.spared
    assert result.calls["unet_shallow"] == expected.calls["unet_shallow"] > 0


def test_a_solver_with_more_steps_than_asked_for_comes_back_whole(
    server: EmbeddedServer, local: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    with parure.open(server.addresses.grpc) as remote:
        made, expected = (t(photo, ornament, BOX, steps=4, solver="pndm", mode="fast") for t in (remote, local))
    assert made.masks.shape == expected.masks.shape and np.array_equal(made.latents, expected.latents)


def test_pictures_of_many_modes_at_once_are_each_as_if_alone(
    server: EmbeddedServer, local: parure.TryOn, photo: Pixels, ornament: Pixels
) -> None:
    asked = [("exact", 0), ("fast", 1), ("fast", 2), ("fast", 3), ("deep=3", 4), ("exact", 5)]
    with parure.open(server.addresses.grpc) as remote, ThreadPoolExecutor(len(asked)) as pool:
        results = list(pool.map(lambda a: remote(photo, ornament, BOX, steps=12, mode=a[0], seed=a[1]), asked))
    for (mode, seed), result in zip(asked, results, strict=True):
        alone = local(photo, ornament, BOX, steps=12, mode=mode, seed=seed)
        assert np.abs(result.latents - alone.latents).max() <= 3e-4 * np.abs(alone.latents).max()
        assert result.spared == alone.spared
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert {line["mode"] for line in lines if line["event"] == "picture"} >= {"exact", "fast", "deep=3"}


def test_a_mode_that_there_is_not_is_refused_by_name(server: EmbeddedServer, photo: Pixels, ornament: Pixels) -> None:
    with parure.open(server.addresses.grpc) as remote, pytest.raises(RequestError, match="mode is 'fastest'"):
        remote(photo, ornament, BOX, mode="fastest")
    with grpc.insecure_channel(server.addresses.grpc.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for model in ("tryon", "tryon_unary"):
            message = service_pb2.ModelInferRequest(model_name=model)
            inputs = {"photo": png(photo), "ornament": png(ornament), "box": np.array(BOX)}
            for name, array in inputs.items():
                datatype = "FP64" if name == "box" else "UINT8"
                message.inputs.add(name=name, datatype=datatype, shape=array.shape)
                message.raw_input_contents.append(array.tobytes())
            message.inputs.add(name="mode", datatype="BYTES", shape=[1])
            message.raw_input_contents.append(len(b"fastest").to_bytes(4, "little") + b"fastest")
            if model == "tryon":
                (reply,) = stub.ModelStreamInfer(iter([message]))
                assert reply.error_message.startswith("INVALID_ARGUMENT: mode is 'fastest'")
                continue
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(message)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "mode is 'fastest'" in caught.value.details()


def test_the_outer_blocks_are_probed_like_every_component(server: EmbeddedServer) -> None:
    found = {finding.subject: finding.passed for finding in probe(server.addresses.grpc, 20)}
    assert found["unet_shallow"]
