"""The benchmark of the thin client measures what it says, at the smallest size. It is not timed here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from parure_bench.thin_client import CONCURRENCY, measure
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    folder = tmp_path_factory.mktemp("thin") / "models"
    write_repository(tiny_bundle, folder, threads=1)
    with EmbeddedServer(folder) as running:
        running.wait_ready()
        yield running


def test_both_clients_are_measured_at_every_concurrency(server: EmbeddedServer) -> None:
    for concurrency in CONCURRENCY:
        load = measure(server.addresses.grpc, "mask_head", concurrency, 1, 0.2)
        assert load.concurrency == concurrency
        assert len(load.raw) == len(load.runtime) == 1 and min(*load.raw, *load.runtime, load.ratio) > 0
