"""`parure doctor` without a server: what is said of machines that lack something, and of this one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from parure.cli import main
from parure.doctor import machine, software
from parure.finding import Finding
from parure.host import Gpu

H200 = Gpu("H200", (9, 0), "580.12", 140 * 2**30)
VERSIONS = {
    "numpy": "1.26.4", "nvidia-pytriton": "0.7.0", "onnxruntime": "1.31.1", "tritonclient": "2.73.0", "parure": "0.1.0",
}  # fmt: skip


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Changes what is installed; None takes a package away."""

    def install(**changes: str | None) -> None:
        versions: dict[str, str | None] = {**VERSIONS, **{k.replace("_", "-"): v for k, v in changes.items()}}
        monkeypatch.setattr(software, "installed", versions.get)

    install()
    return install


def test_this_machine_is_examined_and_every_finding_has_a_level_and_problems_a_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)
    subjects = {finding["subject"] for finding in findings}
    assert {"parure", "numpy", "embedded Triton", "ONNX Runtime", "tritonclient", "TensorRT", "GPU"} <= subjects
    assert {"open files", "clock", "port 8000 (http)", "port 8001 (grpc)", "port 8002 (metrics)"} <= subjects
    assert {finding["level"] for finding in findings} <= {"ok", "warning", "problem"}
    assert all(finding["remedy"] for finding in findings if finding["level"] == "problem")
    assert exit_.value.code == any(finding["level"] == "problem" for finding in findings)


def test_numpy_2_beside_the_embedded_server_is_a_problem_and_alone_it_is_none(have: Callable[..., None]) -> None:
    have(numpy="2.3.1")
    finding = software.embedded_server()
    assert finding.level == "problem" and "empty outputs with numpy 2" in finding.found and "numpy<2" in finding.remedy
    have(numpy="2.3.1", nvidia_pytriton=None)
    assert software.embedded_server().level == software.numpy_here().level == "ok"


def test_an_embedded_server_without_a_backend_for_this_python_or_without_a_runtime_is_a_problem(
    have: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    have(onnxruntime=None)
    assert "no ONNX Runtime for its models" in software.embedded_server().found
    have()
    monkeypatch.setattr(software, "_stub", lambda python: Path("/nowhere"))
    finding = software.embedded_server()
    assert finding.level == "problem" and "no python backend for Python" in finding.found


@pytest.mark.parametrize(
    ("numpy", "level", "words"),
    [
        ("echo 1.26.4", "ok", "numpy 1.26.4"),
        ("echo 2.1.0", "problem", "numpy 2.1.0"),
        ("exit 1", "problem", "cannot import"),
    ],
)
def test_a_servers_own_python_is_asked_for_its_numpy(
    numpy: str, level: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in (("tritonserver", "exit 0"), ("python3", numpy)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (finding,) = software.container_server()
    assert finding.level == level and words in finding.found


def test_onnx_runtimes_are_one_and_the_one_for_the_gpu(have: Callable[..., None]) -> None:
    assert software.onnx_runtime([]).level == "ok"
    assert software.onnx_runtime([H200]).level == "warning"
    have(onnxruntime_gpu="1.31.1")
    assert software.onnx_runtime([]).level == "problem"
    have(onnxruntime=None)
    assert software.onnx_runtime([]).level == "warning"


def test_a_gpu_on_the_bus_without_a_driver_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, vendor, kind in (("a", "0x10de", "0x030200"), ("b", "0x8086", "0x030000"), ("c", "0x10de", "0x068000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    monkeypatch.setattr(machine, "PCI_DEVICES", tmp_path)
    finding = machine.graphics([])
    assert finding.level == "warning" and finding.found.startswith("1 of NVIDIA's") and "--gpus" in finding.remedy
    assert "H200, sm90" in machine.graphics([H200]).found


@pytest.mark.parametrize(("cuda", "level"), [(13000, "ok"), (11080, "problem")])
def test_a_driver_that_is_too_old_is_a_problem(cuda: int, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    told: dict[str, Any] = {"nvmlSystemGetDriverVersion": "470.1", "nvmlSystemGetCudaDriverVersion_v2": cuda}
    for name, value in {**told, "nvmlInit": None, "nvmlShutdown": None}.items():
        monkeypatch.setattr(pynvml, name, lambda value=value: value)
    (finding,) = machine.driver()
    assert finding.level == level and bool(finding.remedy) == (level == "problem")


@pytest.mark.parametrize(
    ("total", "free", "level"), [(2**30, 2**30, "ok"), (64 * 2**20, 64 * 2**20, "problem"), (2**30, 2**20, "warning")]
)
def test_the_64_mib_of_a_container_are_too_little_shared_memory(
    total: int, free: int, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(total, total - free, free))
    finding = machine.shared_memory(Path("/dev/shm"))
    assert finding.level == level and bool(finding.remedy) == (level != "ok")


def test_a_machine_without_shared_memory_is_told(tmp_path: Path) -> None:
    assert machine.shared_memory(tmp_path / "none").level == "problem"


@pytest.mark.parametrize(("free", "level"), [(2**40, "ok"), (2 * 2**30, "warning"), (2**20, "problem")])
def test_a_disk_that_runs_full_is_told(free: int, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**41, 2**41 - free, free))
    assert machine.disk(tmp_path).level == level


@pytest.mark.parametrize(
    ("limit", "level"), [(65536, "ok"), (resource.RLIM_INFINITY, "ok"), (1024, "warning"), (256, "problem")]
)
def test_few_open_files_are_told(limit: int, level: str) -> None:
    assert machine.open_files(limit).level == level


def test_a_port_that_is_taken_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (finding,) = machine.ports({"http": taken.getsockname()[1]})
        assert finding.level == "warning" and "--http-port" in finding.remedy
        port = taken.getsockname()[1]
    (finding,) = machine.ports({"http": port})
    assert finding == Finding(f"port {port} (http)", True, "free")


def test_a_clock_that_jumps_or_stands_in_the_past_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.clock().level == "ok"
    ticks = iter([1.8e9, 1.8e9 + 30])
    monkeypatch.setattr(machine.time, "time", lambda: next(ticks))
    finding = machine.clock()
    assert finding.level == "warning" and "jumped by +" in finding.found
    monkeypatch.setattr(machine.time, "time", lambda: 0.0)
    assert machine.clock().level == "problem"
