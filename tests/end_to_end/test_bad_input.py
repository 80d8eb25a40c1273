"""Every wrong input on the command line: exit code, words, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from parure.bundle import Bundle
from parure.cli import main
from parure.image import Pixels
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

BOX = "30,40,70,75"


@pytest.fixture
def pictures(photo: Pixels, ornament: Pixels, tmp_path: Path) -> Path:
    Image.fromarray(photo).save(tmp_path / "photo.png")
    Image.fromarray(ornament).save(tmp_path / "ornament.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "photo.png").read_bytes()[:500])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "bomb.png").write_bytes(bomb(20_000))
    return tmp_path


def bomb(side: int) -> bytes:
    """A PNG of `side` x `side` black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(side // 8 + 1) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, said


def run(
    source: object,
    pictures: Path,
    *more: object,
    photo: str = "photo.png",
    ornament: str = "ornament.png",
    box: str = BOX,
) -> list[object]:
    named = ["--photo", pictures / photo, "--ornament", pictures / ornament, "--box", box, "--out", pictures / "out"]
    return ["run", source, *named, *more]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"photo": "missing.png"}, ["photo", "missing.png"]),
        ({"photo": "truncated.png"}, ["photo", "truncated.png"]),
        ({"photo": "text.png"}, ["photo", "text.png", "JPEG, PNG"]),
        ({"photo": "empty.png"}, ["photo", "empty.png"]),
        ({"ornament": "text.png"}, ["ornament", "text.png"]),
        ({"photo": "bomb.png"}, ["photo", "bomb.png", "20000"]),
        ({"box": "100,40,140,75"}, ["box", "128"]),
        ({"box": "30,40,30,75"}, ["box", "30,40,30,75"]),
        ({"box": "70,40,30,75"}, ["box", "70,40,30,75"]),
        ({"box": "30,40,33,43"}, ["box", "8"]),
        ({"box": "30,40,70"}, ["box"]),
    ],
)
def test_a_picture_or_box_that_does_not_do_is_named(
    options: dict[str, str], words: list[str], tiny_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refusal(capsys, *run(tiny_bundle, pictures, **options))
    assert code == 2
    for word in words:
        assert word in said.replace("20,000", "20000")
    assert not (pictures / "out" / "picture.png").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--solver", "runge-kutta"], ["runge-kutta", "ddim"]),
        (["--steps", "0"], ["steps is 0", "from 1 to"]),
        (["--steps", "many"], ["--steps"]),
        (["--seed", "-4"], ["seed is -4"]),
        (["--guidance", "nan"], ["guidance is nan"]),
    ],
)
def test_a_parameter_out_of_range_is_named(
    more: list[str], words: list[str], tiny_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refusal(capsys, *run(tiny_bundle, pictures, *more))
    assert code == 2
    for word in words:
        assert word in said


def test_a_tampered_bundle_is_refused(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    graph = copy / "onnx" / "unet.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    for arguments in (run(copy, pictures), ["repo", copy, "--out", tmp_path / "models"]):
        code, said = refusal(capsys, *arguments)
        assert code == 2 and "onnx/unet.onnx" in said and "altered or truncated" in said
    assert not (tmp_path / "models").exists()


def test_a_pickle_checkpoint_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    (copy / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    code, said = refusal(capsys, "export", copy, "--out", tmp_path / "bundle")
    assert code == 2 and "pickle" in said and not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_is_named(scheme: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, said = refusal(capsys, *run(f"{scheme}://127.0.0.1:{port}", pictures))
    assert code == 1 and str(port) in said and "parure serve" in said


def test_a_server_that_lacks_a_model_or_serves_another_bundle_is_named(
    tiny_bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking, mixed = tmp_path / "lacking", tmp_path / "mixed"
    for repository in (lacking, mixed):
        write_repository(tiny_bundle, repository, threads=1)
    shutil.rmtree(lacking / "unet")
    config = mixed / "unet" / "config.pbtxt"
    config.write_text(config.read_text().replace(Bundle.open(tiny_bundle).identity, "0" * 64))
    for repository, words in ((lacking, "lacks"), (mixed, "bundle")):
        with EmbeddedServer(repository) as server:
            server.wait_ready()
            code, said = refusal(capsys, *run(server.addresses.grpc, pictures))
        assert code == 1 and "unet" in said and words in said


def test_a_port_in_use_is_named(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_repository(tiny_bundle, tmp_path / "models", threads=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = refusal(capsys, "serve", tmp_path / "models", "--grpc-port", port)
    assert code == 2 and str(port) in said and "--grpc-port" in said


@pytest.mark.parametrize("command", ["run", "repo", "export", "checkpoint"])
def test_a_place_that_cannot_be_written_is_named(
    command: str, tiny_bundle: Path, tiny_checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below_a_file = pictures / "photo.png" / "out"
    arguments = {
        "run": [*run(tiny_bundle, pictures)[:-1], below_a_file],
        "repo": ["repo", tiny_bundle, "--out", below_a_file],
        "export": ["export", tiny_checkpoint, "--out", below_a_file],
        "checkpoint": ["checkpoint", "new", "--geometry", "demo", below_a_file],
    }[command]
    code, said = refusal(capsys, *arguments)
    assert code == 2 and "photo.png" in said


def test_a_run_writes_picture_mask_and_strip_and_prints_json(
    tiny_bundle: Path, pictures: Path, photo: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in run(tiny_bundle, pictures, "--steps", 2, "--json")])
    assert exit_.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["steps"] == 2 and report["transport"] == "onnxruntime"
    assert np.asarray(Image.open(report["picture"])).shape == photo.shape
    assert Image.open(report["mask"]).mode == "L"
    assert Image.open(report["strip"]).width > Image.open(report["strip"]).height
