"""The client loop with shared memory and without, over a real server: one picture, few bytes, consent where due."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import parure
from parure import locality
from parure.cli import main
from parure.errors import InputError
from parure.image import Pixels
from parure.locality import client_loop_cost
from parure.regions import FOLDER, PREFIX
from parure.shared_tensors import SharedMemory
from parure_triton.repository import write_repository
from parure_triton.server import Addresses, EmbeddedServer

BOX = (30.0, 40.0, 70.0, 75.0)
SHARED = SharedMemory(least=4096)  # the tiny model's features have fewer bytes than the default asks for


@pytest.fixture(scope="module")
def repository(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "models"
    write_repository(tiny_bundle, out, threads=1)
    return out


@pytest.fixture(scope="module")
def served(repository: Path) -> Iterator[Addresses]:
    with EmbeddedServer(repository, client_shared_memory=True) as server:
        server.wait_ready()
        yield server.addresses


@pytest.fixture
def pictures(photo: Pixels, ornament: Pixels, tmp_path: Path) -> list[str]:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(ornament).save(tmp_path / "ornament.png")
    return ["--photo", f"{tmp_path}/photo.png", "--ornament", f"{tmp_path}/ornament.png", "--box", "30,40,70,75",
            "--out", f"{tmp_path}/out", "--steps", "3"]  # fmt: skip


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's name resolves to an address that is not this host's."""
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]
    monkeypatch.setattr(locality.socket, "getaddrinfo", lambda *_, **__: answer)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_the_loop_over_shared_memory_is_the_plain_loop_bit_for_bit(
    scheme: str, guidance: float, served: Addresses, tiny_bundle: Path, photo: Pixels, ornament: Pixels
) -> None:
    url = getattr(served, scheme)
    results = []
    for source, options in ((url, {"shared_memory": SHARED}), (url, {"loop": "client"}), (tiny_bundle, {"threads": 1})):
        with parure.open(source, **options) as tryon:  # type: ignore[arg-type]
            results += [tryon(photo, ornament, BOX, steps=4, guidance=guidance) for _ in range(2)]
    for result in results[1:]:
        assert np.array_equal(result.latents, results[0].latents)
        assert np.array_equal(result.masks, results[0].masks)
        assert np.array_equal(np.asarray(result.image), np.asarray(results[0].image))
    assert not list(FOLDER.glob(f"{PREFIX}{os.getpid()}-*"))


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_bytes_on_the_wire_are_what_the_manifest_foretells_and_shared_memory_spares_the_features(
    scheme: str, served: Addresses, photo: Pixels, ornament: Pixels
) -> None:
    with parure.open(getattr(served, scheme), loop="client") as tryon:
        plain = tryon(photo, ornament, BOX, steps=4, guidance=2.0)
        cost = client_loop_cost(tryon.manifest, 4, 2.0)
    with parure.open(getattr(served, scheme), shared_memory=SHARED) as tryon:
        shared = tryon(photo, ornament, BOX, steps=4, guidance=2.0)
    described = 1500 * sum(plain.calls.values())  # names, types and shapes, a call
    assert cost.sent <= plain.wire.sent <= cost.sent + described
    assert cost.received <= plain.wire.received <= cost.received + described
    assert shared.wire.total <= plain.wire.total - cost.features + described
    assert plain.timings.wire is plain.wire


def test_pictures_made_at_once_count_their_own_bytes(served: Addresses, photo: Pixels, ornament: Pixels) -> None:
    with parure.open(served.grpc, loop="client") as tryon:
        alone = tryon(photo, ornament, BOX, steps=3)
        alone = tryon(photo, ornament, BOX, steps=3)  # the ornament is kept from now on
        streams = [tryon.stream(photo, ornament, BOX, steps=3, preview="none") for _ in range(2)]
        last = [progress for pair in zip(*streams, strict=True) for progress in pair][-2:]
    for progress in last:
        assert progress.result is not None and progress.result.wire == alone.wire


def test_a_loop_in_this_process_has_nothing_on_the_wire(tiny_bundle: Path, photo: Pixels, ornament: Pixels) -> None:
    with parure.open(tiny_bundle, threads=1) as tryon:
        assert tryon(photo, ornament, BOX, steps=1).wire.total == 0


def test_a_server_elsewhere_needs_consent(elsewhere: None, served: Addresses, photo: Pixels, ornament: Pixels) -> None:
    with pytest.raises(InputError, match=r"not on this host.* MB .*allow_wire_features=True"):
        parure.open(served.grpc, loop="client")
    with parure.open(served.grpc, loop="client", allow_wire_features=True) as tryon:
        assert tryon(photo, ornament, BOX, steps=1).wire.total > 0
    with pytest.raises(InputError, match="cannot share memory"):
        parure.open(served.grpc, shared_memory=True, allow_wire_features=True)


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return exit_.value.code, captured.out, captured.err


def test_the_command_line_shares_memory_and_reports_bytes(
    served: Addresses, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = said(capsys, "run", "ftp://127.0.0.1", *pictures, "--shared-memory")
    assert code == 2 and "expected grpc://HOST:PORT" in error
    code, out, _ = said(capsys, "run", served.grpc, *pictures, "--shared-memory", "--json")
    wire = json.loads(out)["wire_bytes"]
    assert code == 0 and wire["sent"] > 0 and wire["received"] > 0


def test_the_command_line_asks_for_consent(
    elsewhere: None, served: Addresses, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = said(capsys, "run", served.grpc, *pictures, "--loop", "client")
    assert code == 2 and "--allow-wire-features" in error
    code, out, _ = said(capsys, "run", served.grpc, *pictures, "--loop", "client", "--allow-wire-features")
    assert code == 0 and " MB sent, " in out


def test_shared_memory_with_a_bundle_is_a_mistake(
    tiny_bundle: Path, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = said(capsys, "run", str(tiny_bundle), *pictures, "--shared-memory")
    assert code == 2 and "give its URL" in error


def test_a_server_that_is_locked_down_is_served_open_by_the_option_that_the_error_names(
    repository: Path, pictures: list[str]
) -> None:
    serve = [sys.executable, "-m", "parure", "serve", str(repository), "--http-port", "0", "--grpc-port", "0",
             "--metrics-port", "0"]  # fmt: skip
    for option, expected in (([], 1), (["--client-shared-memory"], 0)):
        process = subprocess.Popen([*serve, *option], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        url = next(line.strip() for line in lines if "grpc://" in line)
        run = [sys.executable, "-m", "parure", "run", url, *pictures, "--shared-memory"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=120)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert done.returncode == expected, done.stderr
        assert expected == 0 or "parure serve --client-shared-memory" in " ".join(done.stderr.split())
