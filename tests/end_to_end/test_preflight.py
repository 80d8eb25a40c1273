"""`parure preflight`: what is said of this machine, of GPUs that are not here, and of a real server."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from parure import preflight
from parure.bundle import Bundle
from parure.cli import main
from parure.doctor import software
from parure.engine import open_record
from parure.finding import Finding
from parure.host import Gpu
from parure.preflight import examine_host, examine_server
from parure_export.engines.build import build_engines
from parure_export.engines.cache import EngineCache
from parure_export.engines.request import Options, Profile
from parure_export.engines.targets import Flavor, Target
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

A100 = Gpu("A100", (8, 0), "580.12", 80 * 2**30)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with one engine, for an A100."""
    folder = tmp_path_factory.mktemp("preflight")
    shutil.copytree(tiny_bundle, folder / "bundle")
    opened = Bundle.open(folder / "bundle")
    profiles = [Profile(min=1, opt=1, max=1)]
    list(
        build_engines(
            opened, Target("a100", (8, 0)), Flavor.TENSORRT_RTX, profiles,
            options=Options(), cache=EngineCache(folder / "cache"), components=["mask_head"],
        )
    )  # fmt: skip
    return opened


def engine_finding(bundle: Bundle, here: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> Finding:
    monkeypatch.setattr(preflight, "gpus", lambda: here)
    return list(examine_host(bundle))[-1]


def test_an_engine_fits_the_gpu_that_it_was_built_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine_finding(bundle, [A100], monkeypatch).passed


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ([], "this machine has no GPU"),
        ([Gpu("L4", (8, 9), "580.12", 2**34)], "was built for sm80, L4 is sm89; build it with --target local"),
        ([Gpu("A100", (8, 0), "580.12", 2**10)], "GiB of memory"),
    ],
)
def test_an_engine_that_does_not_fit_is_told_why(
    here: list[Gpu], words: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = engine_finding(bundle, here, monkeypatch)
    assert finding.passed is False and words in finding.found


def test_an_engine_of_another_version_of_tensorrt_is_told_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "installed", lambda package: "99.0")
    finding = engine_finding(bundle, [A100], monkeypatch)
    built = open_record(next(bundle.root.glob("engines/*/*.plan"))).flavor_version
    assert finding.passed is False and f"was built with tensorrt-rtx-cu12 {built}, 99.0 is installed" in finding.found


def test_two_onnx_runtimes_at_once_are_a_failure(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "installed", lambda package: "1.31")
    finding = next(f for f in examine_host(bundle) if f.subject == "ONNX Runtime")
    assert finding.passed is False and "keep one of the two" in finding.found


def test_a_server_is_compared_with_the_bundle(bundle: Bundle, tiny_bundle: Path, tmp_path: Path) -> None:
    write_repository(tiny_bundle, tmp_path / "models", threads=1)
    with EmbeddedServer(tmp_path / "models") as server:
        server.wait_ready()
        for url in (server.addresses.grpc, server.addresses.http):
            findings = list(examine_server(bundle, url, 10))
            assert all(f.passed is not False for f in findings) and server.version in findings[0].found
        other = Bundle(bundle.root, bundle.manifest, "0" * 64)
        (refused,) = examine_server(other, server.addresses.grpc, 10)
        assert refused.passed is False and "expected 000000000000..." in refused.found


def test_a_server_that_is_not_there_fails_the_preflight(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"grpc://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SystemExit) as exit_:
        main(["preflight", str(bundle.root), url, "--deadline", "2"])
    assert exit_.value.code == 1 and "FAILED" in capsys.readouterr().out
