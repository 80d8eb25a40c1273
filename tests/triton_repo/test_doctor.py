"""`parure doctor URL` on real servers: a sound one, one with a dead stub, one without any lock, none at all."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from parure.cli import main
from parure.doctor.command_line import unsafe_flags
from parure.doctor.endpoint import FLOOR_CONTAINER, clock, metrics, version
from parure.doctor.management import APIS
from parure_triton.deployment import FLOOR
from parure_triton.flags import CLOSED_APIS
from parure_triton.server import EmbeddedServer

pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
Serving = Callable[..., AbstractContextManager[dict[str, int]]]


def examined(url: str, metrics_port: int, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and the findings by subject."""
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", url, "--metrics-port", str(metrics_port), "--json"])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, {finding["subject"]: finding for finding in json.loads(capsys.readouterr().out)}


def port_of(url: str) -> int:
    return int(url.split(":")[2].split("/")[0])


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_sound_server_has_no_problem(scheme: str, server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    at = server.addresses
    code, findings = examined(getattr(at, scheme), port_of(at.metrics), capsys)
    assert code == 0
    assert {"server", "manifest", "unet", "mask_head", "tryon", "tryon_unary"} <= set(findings)
    warned = {subject for subject, finding in findings.items() if finding["level"] != "ok"}
    assert warned <= {"version", "tryon"}  # the embedded server is an old one; over HTTP `tryon` is not asked
    assert server.version in findings["version"]["found"] and "26.06" in findings["version"]["remedy"]
    assert findings["auto-complete"]["found"] == "off" and "server loop's" in findings["metrics"]["found"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_memory_shared_on_purpose_is_a_warning_on_this_host(
    scheme: str, sharing: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code, findings = examined(getattr(sharing.addresses, scheme), port_of(sharing.addresses.metrics), capsys)
    assert code == 0 and findings["shared-memory API"]["level"] == "warning"
    assert all(findings[f"{api} API"]["level"] == "ok" for api in CLOSED_APIS if api != "shared-memory")


def test_a_dead_stub_is_a_problem_with_its_remedy(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with EmbeddedServer(repository) as server:
        server.wait_ready(60)
        for stub in psutil.Process(server.pid).children():
            if any("/unet/" in argument for argument in stub.cmdline()):
                os.kill(stub.pid, signal.SIGKILL)
        code, findings = examined(server.addresses.grpc, port_of(server.addresses.metrics), capsys)
        server.kill()  # a drain would wait for the dead
    assert code == 1
    assert {subject for subject, finding in findings.items() if finding["level"] == "problem"} == {"unet"}
    assert "unready" in findings["unet"]["found"] and "restart the server" in findings["unet"]["remedy"]


def test_a_server_without_any_lock_is_told_of_every_one(
    repository: Path, native_server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model-repository=/models", "--model-control-mode=explicit", "--load-model=*"]
    with native_server(repository, "python", "", [*flags, "--strict-readiness=false"]) as ports:
        for scheme in ("http", "grpc"):
            code, findings = examined(f"{scheme}://127.0.0.1:{ports[scheme]}", ports["metrics"], capsys)
            assert code == 1
            levels = {subject: finding["level"] for subject, finding in findings.items()}
            problems = {subject for subject, level in levels.items() if level == "problem"}
            assert problems == {"model-repository API", "trace API", "logging API", "model control"}
            warnings = {"shared-memory API", "statistics API", "auto-complete", "strict readiness"}
            assert warnings <= {subject for subject, level in levels.items() if level == "warning"}
            assert all(findings[subject]["remedy"] for subject in problems | warnings)
            assert "unet" in findings and levels["unet"] == "ok"  # and asking did no harm


def test_every_api_that_parure_closes_is_asked() -> None:
    assert {api.name for api in APIS} == set(CLOSED_APIS)


def test_nothing_there_is_one_problem_and_a_wrong_address_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for scheme in ("grpc", "http"):
        code, findings = examined(f"{scheme}://127.0.0.1:{port}", port, capsys)
        assert code == 1 and list(findings) == ["server"] and findings["server"]["remedy"]
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "ftp://somewhere"])
    assert exit_.value.code == 2


def test_an_old_server_is_a_warning_on_this_host_and_a_problem_elsewhere() -> None:
    assert [version(told, local=False).level for told in ("2.70.0", "2.100.1", "3.0.0")] == ["ok"] * 3
    assert [version("2.69.0", local=local).level for local in (True, False)] == ["warning", "problem"]
    assert version("nightly", local=False).level == "warning"
    assert f"{FLOOR[0]}.{FLOOR[1]:02}" == FLOOR_CONTAINER


@pytest.mark.parametrize(
    ("flags", "subject"),
    [
        (["--model-control-mode=poll", "--disable-auto-complete-config"], "model control mode"),
        (["--strict-readiness=false", "--disable-auto-complete-config"], "strict readiness"),
        ([], "auto-complete"),
    ],
)
def test_flags_that_only_the_command_line_tells_are_told(flags: list[str], subject: str) -> None:
    told = [
        finding for finding in unsafe_flags(["/opt/tritonserver/bin/tritonserver", *flags]) if finding.level != "ok"
    ]
    assert [finding.subject for finding in told] == [subject] and told[0].remedy
    assert not list(unsafe_flags(["nginx", *flags]))


@contextmanager
def proxy(apart: float) -> Iterator[str]:
    """Something before a server, whose clock is `apart` seconds from this one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:

            return formatdate(time.time() + apart, usegmt=True)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.mark.parametrize(("apart", "level"), [(0.0, "ok"), (-120.0, "warning"), (3600.0, "warning")])
def test_a_clock_that_is_apart_is_told(apart: float, level: str) -> None:
    with proxy(apart) as url:
        (finding,) = clock(url, 5)
        assert finding.level == level
        assert metrics(url, 5, port_of(url)).level == "warning"  # it answers, and is not Triton's


def test_triton_itself_tells_no_time(server: EmbeddedServer) -> None:
    assert not list(clock(server.addresses.http, 5)) and not list(clock(server.addresses.grpc, 5))
