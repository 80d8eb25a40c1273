"""The client loop over a real Triton is the in-process loop: over gRPC and over HTTP, bit for bit in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import parure
from parure.image import Pixels
from parure_triton.repository import write_repository
from parure_triton.server import Addresses, EmbeddedServer

BOX = (30.0, 40.0, 70.0, 75.0)


@pytest.fixture(scope="module")
def served(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    repository = tmp_path_factory.mktemp("served") / "models"
    write_repository(tiny_bundle, repository, threads=1)
    with EmbeddedServer(repository) as server:
        server.wait_ready()
        yield server.addresses


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, photo: Pixels, ornament: Pixels) -> parure.Result:
    with parure.open(tiny_bundle, threads=1) as tryon:
        return tryon(photo, ornament, BOX, steps=3, guidance=2.0)


@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_served_loop_equals_in_process_loop_bit_for_bit(
    transport: str, served: Addresses, expected: parure.Result, photo: Pixels, ornament: Pixels
) -> None:
    with parure.open(getattr(served, transport), loop="client") as tryon:
        result = tryon(photo, ornament, BOX, steps=3, guidance=2.0)
    assert np.array_equal(result.latents, expected.latents)
    assert np.array_equal(result.masks, expected.masks)
    assert np.array_equal(np.asarray(result.image), np.asarray(expected.image))


def test_a_served_ornament_is_encoded_once(served: Addresses, photo: Pixels, ornament: Pixels) -> None:
    with parure.open(served.grpc, loop="client") as tryon:
        cold = tryon(photo, ornament, BOX, steps=2)
        warm = tryon(photo, ornament, BOX, steps=2)
    assert cold.calls["vae_encoder"] == 2 and cold.calls["image_encoder"] == 1
    assert warm.calls["vae_encoder"] == 1 and "image_encoder" not in warm.calls
    assert np.array_equal(cold.latents, warm.latents)


def test_a_stream_over_the_wire_ends_in_the_calls_result(
    served: Addresses, expected: parure.Result, photo: Pixels, ornament: Pixels
) -> None:
    with parure.open(served.grpc, loop="client") as tryon:
        seen = list(tryon.stream(photo, ornament, BOX, steps=3, guidance=2.0, preview="decode"))
    assert [progress.step for progress in seen] == [1, 2, 3]
    assert seen[-1].result is not None
    assert np.array_equal(seen[-1].result.latents, expected.latents)
