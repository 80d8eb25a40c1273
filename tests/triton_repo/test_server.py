"""The embedded server: refuses what it cannot serve, says why, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from parure.bundle import Bundle
from parure.errors import InputError, ServerError
from parure_triton import installation
from parure_triton.deployment import Deployment, DeploymentOptions, write_deployment
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.server import DRAIN_SECONDS, EmbeddedServer

pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
SHARED_MEMORY = Path("/dev/shm")


def living(group: int) -> list[psutil.Process]:
    """The processes of the group that are not mere zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def regions(prefix: str) -> list[Path]:
    return list(SHARED_MEMORY.glob(f"{prefix}*"))


def test_stopping_leaves_no_process_no_shared_memory_no_folder(repository: Path) -> None:
    with EmbeddedServer(repository) as server:
        server.wait_ready(60)
        group, folder, prefix = server.pid, server.log.parent, server._shm_prefix
        assert len(living(group)) >= 2 and regions(prefix) and folder.is_dir()
        assert prefix.startswith("triton_python_backend_shm_region_")
    assert not living(group) and not regions(prefix) and not folder.exists()


def test_a_server_that_was_killed_is_noticed_and_cleaned_up(repository: Path) -> None:
    with EmbeddedServer(repository) as server:
        server.wait_ready(60)
        group, prefix = server.pid, server._shm_prefix
        os.kill(group, signal.SIGKILL)
        until = time.monotonic() + 5
        with pytest.raises(ServerError, match="ended with exit code -9"):
            while time.monotonic() < until:
                server.check_alive()
                time.sleep(0.05)
        assert regions(prefix), "the python backend leaks its regions when killed: that is what stop is for"
    assert not living(group) and not regions(prefix)


def test_a_port_in_use_is_named_before_anything_starts(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=rf"port {port} \(grpc\).*--grpc-port"),
            EmbeddedServer(repository, grpc_port=port),
        ):
            pytest.fail("the server was started")


def test_a_tampered_graph_is_not_loaded_and_the_error_says_why(repository: Path, tmp_path: Path) -> None:
    altered = tmp_path / "repository"
    shutil.copytree(repository, altered)
    data = altered / "unet" / "1" / "unet.onnx.data"
    content = bytearray(data.read_bytes())
    content[7] ^= 1
    data.write_bytes(content)
    with EmbeddedServer(altered) as server, pytest.raises(ServerError, match=r"unet\.onnx\.data has sha256 .* altered"):
        server.wait_ready(60)


def test_what_is_no_model_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a model repository of parure"):
        EmbeddedServer(tmp_path)


def test_a_repository_for_a_gpu_host_is_refused_with_what_to_do(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models", options=RepositoryOptions.of(backend="onnxruntime"))
    with pytest.raises(InputError, match=r"mask_head in .* is for Triton's onnxruntime backend.*NVIDIA's container"):
        EmbeddedServer(tmp_path / "models")


def test_numpy_2_is_refused_with_the_remedy(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "version", lambda _: "2.3.1")
    with pytest.raises(InputError, match=r"numpy is 2\.3\.1.*pip install 'numpy<2'"):
        EmbeddedServer(repository)


@pytest.mark.parametrize("package", ["pytriton", "onnxruntime"])
def test_a_missing_package_is_named_with_the_remedy(
    repository: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    find = installation.importlib.util.find_spec
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(InputError, match=r"pip install 'parure\[cpu,serve\]'"):
        EmbeddedServer(repository)


def test_the_probe_of_a_deployment_fails_when_the_process_behind_a_model_has_died(
    server: EmbeddedServer, repository: Path, bundle: Path, tmp_path: Path
) -> None:
    models = write_repository(bundle, tmp_path / "models")
    facts = Deployment(Bundle.open(bundle).manifest, models, RepositoryOptions(), DeploymentOptions())
    write_deployment(facts, tmp_path / "deploy", tmp_path / "models")
    compose = yaml.safe_load((tmp_path / "deploy" / "compose.yaml").read_text())
    _, python, *probe = compose["services"]["triton"]["healthcheck"]["test"]
    assert python == "python3"

    def healthy(url: str) -> bool:
        asked = [sys.executable, *(part.replace("grpc://127.0.0.1:8001", url) for part in probe)]
        return subprocess.run(asked, capture_output=True, timeout=60).returncode == 0

    assert healthy(server.addresses.grpc)
    with EmbeddedServer(repository) as sick:
        sick.wait_ready(60)
        for stub in psutil.Process(sick.pid).children():
            if any("/unet/" in argument for argument in stub.cmdline()):
                stub.kill()
        assert not healthy(sick.addresses.grpc)
        sick.kill()  # a drain would wait for the dead


def test_only_loopback_listens(server: EmbeddedServer) -> None:
    listening = [c for c in psutil.Process(server.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert len(listening) == 3
    assert {connection.laddr.ip.removeprefix("::ffff:") for connection in listening} == {"127.0.0.1"}


SERVE = """
import sys
from pathlib import Path
from parure_triton import server as module
start = module.EmbeddedServer._start
def started(self):
    start(self)
    print(self.pid, self._shm_prefix, self._folder, flush=True)
module.EmbeddedServer._start = started
module.serve(Path(sys.argv[1]), http_port=0, grpc_port=0, metrics_port=0, on_ready=lambda a: print(a.grpc, flush=True))
print("returned", flush=True)
"""


def run_serve(repository: Path) -> tuple[subprocess.Popen[str], int, str, Path]:
    """A process in `serve`, ready; the server's group, its shared memory prefix and its folder."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(repository)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    group, prefix, folder = process.stdout.readline().split()
    assert process.stdout.readline().startswith("grpc://127.0.0.1:")
    return process, int(group), prefix, Path(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_cleanly_on_a_signal(repository: Path, number: signal.Signals) -> None:
    process, group, prefix, folder = run_serve(repository)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "returned\n")
    assert not living(group) and not regions(prefix) and not folder.exists()


def test_a_second_signal_ends_a_server_that_hangs_at_once(repository: Path) -> None:
    process, group, prefix, folder = run_serve(repository)
    os.killpg(group, signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "returned\n")
    assert time.monotonic() - since < DRAIN_SECONDS
    assert not living(group) and not regions(prefix) and not folder.exists()
