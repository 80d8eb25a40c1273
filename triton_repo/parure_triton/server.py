"""The embedded Triton server: the binary of the nvidia-pytriton wheel on loopback, locked down, cleaned up after."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from parure.errors import InputError, ServerError
from parure.signals import StopSignals
from parure.triton import MANIFEST_MODEL
from parure_triton.flags import locked_down
from parure_triton.installation import Installation
from parure_triton.placing import check_embeddable, is_ours

HOST = "127.0.0.1"
DRAIN_SECONDS = 10  # calls in flight have so long to end after SIGTERM
_POLL_SECONDS = 0.05
_SHARED_MEMORY = Path("/dev/shm")
_NOISE = ("CudaDriverHelper", "pb_stub.cc", "backend_model.cc")


@dataclass(frozen=True)
class Addresses:
    """The URLs of a server; `grpc` and `http` are what `TritonExecutor` and `open_tryon` take."""

    http: str
    grpc: str
    metrics: str


class EmbeddedServer:
    """A Triton server of this process, on loopback only, from `with` to its end. Ports 0 are chosen.

    Models are loaded once and stay; model control, shared memory registration (unless it is asked for), statistics,
    trace and logging are closed to clients. Leaving drains calls in flight, ends the whole process group and removes every trace.
    """

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        log: Path | None = None,
        client_shared_memory: bool = False,
        admin_key: str | None = None,
    ) -> None:
        """`repository`: what `write_repository` wrote. `log`: where to keep the server's log, else a temporary file.

        `client_shared_memory` lets every client that reaches the ports have the server read and write any shared
        memory of this user: for trusted clients on this host only. `admin_key` opens what is closed to clients; None: a
        key that nobody knows.
        Raises `InputError` for a folder that is no repository, and an environment that cannot run Triton.
        """
        self._repository = Path(repository).resolve()
        if not is_ours(self._repository / MANIFEST_MODEL):
            raise InputError(
                f"{repository} is not a model repository of parure; `parure repo BUNDLE --out {repository}` writes one"
            )
        check_embeddable(self._repository)
        self._installation = Installation.find()
        self._wanted = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        self._given_log = log
        self._client_shared_memory = client_shared_memory
        self._admin_key = admin_key or secrets.token_hex(16)
        self._shm_prefix = f"triton_python_backend_shm_region_{secrets.token_hex(6)}_"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmbeddedServer:
        """Start the process; raises `InputError` for a port that is taken. Call `wait_ready` next."""
        self._folder = Path(tempfile.mkdtemp(prefix="parure-triton-"))
        try:
            self.log = self._given_log or self._folder / "triton.log"
            self._ports = _claim_ports(self._wanted)
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def addresses(self) -> Addresses:
        at = {name: f"{HOST}:{port}" for name, port in self._ports.items()}
        return Addresses(
            http=f"http://{at['http']}", grpc=f"grpc://{at['grpc']}", metrics=f"http://{at['metrics']}/metrics"
        )

    @property
    def pid(self) -> int:
        """The process id of the server, which is also its process group."""
        return self._running().pid

    @property
    def version(self) -> str:
        """Triton's version, as the running server itself reports it."""
        status, body = self._get("/v2")
        if status != http.HTTPStatus.OK:
            raise ServerError("the embedded server does not answer at /v2; call wait_ready first")
        return str(json.loads(body)["version"])

    def wait_ready(self, timeout: float = 300.0, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Wait until every model is ready, and the metrics, which come last; False if `give_up` said so first.

        Raises `ServerError` with the lines of the log that matter where the server dies or `timeout` seconds pass.
        """
        until = time.monotonic() + timeout
        models = sorted(path.name for path in self._repository.iterdir() if path.is_dir())
        while not give_up():
            self.check_alive()
            ready = all(self._answers(p) for p in ("/v2/health/ready", *(f"/v2/models/{m}/ready" for m in models)))
            if ready and self._answers("/metrics", "metrics"):
                return True
            if time.monotonic() > until:
                raise ServerError(f"Triton was not ready after {timeout:g} s; its log says:\n{self._log_tail()}")
            time.sleep(_POLL_SECONDS)
        return False

    def check_alive(self) -> None:
        """Raises `ServerError` with the lines of the log that matter if the server has ended."""
        if (code := self._running().poll()) is not None:
            raise ServerError(f"Triton ended with exit code {code}; its log says:\n{self._log_tail()}")

    def stop(self) -> None:
        """Drain and end; SIGKILL for what is left after `DRAIN_SECONDS`. May be called again."""
        try:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(DRAIN_SECONDS + 5)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._process is not None:
                _end_group(self._process)
                self._process = None
            for region in _SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
                region.unlink(missing_ok=True)
            shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """End the process group at once; `stop` still has to clean up."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    def _start(self) -> None:
        backend = self._folder / "backends" / "python"
        backend.mkdir(parents=True)
        found = self._installation
        for source in (*(path for path in found.backend.iterdir() if path.is_file()), found.stub):
            (backend / source.name).symlink_to(source)
        command = [
            str(found.binary),
            f"--model-repository={self._repository}",
            f"--backend-directory={backend.parent}",
            *(f"--{name}-address={HOST}" for name in self._ports),
            *(f"--{name}-port={port}" for name, port in self._ports.items()),
            f"--backend-config=python,shm-region-prefix-name={self._shm_prefix}",
            *locked_down(self._admin_key, DRAIN_SECONDS, client_shared_memory=self._client_shared_memory),
        ]
        try:
            stream = self.log.open("wb")
        except OSError as error:
            raise InputError(f"cannot write the log {self.log}: {error.strerror}; choose another file") from error
        with stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=found.environment(),
                cwd=self._folder,
                start_new_session=True,
            )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerError("the embedded server is not running; use it inside `with EmbeddedServer(...)`")
        return self._process

    def _answers(self, path: str, service: str = "http") -> bool:
        return self._get(path, service)[0] == http.HTTPStatus.OK

    def _get(self, path: str, service: str = "http") -> tuple[int, bytes]:
        """Status and body; status 0 where nothing answers."""
        connection = http.client.HTTPConnection(HOST, self._ports[service], timeout=2)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def _log_tail(self, count: int = 8) -> str:
        """The last lines that Triton marks as errors, or the last of all where it marks none."""
        lines = self.log.read_text(errors="replace").splitlines()
        marked = [line for line in lines if re.match(r"E\d{4} |error: ", line) and not any(n in line for n in _NOISE)]
        return "\n".join(line.split(r"\n\nAt:")[0] for line in (marked or lines)[-count:])


def serve(
    repository: Path,
    *,
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    on_ready: Callable[[Addresses], None],
    log: Path | None = None,
    client_shared_memory: bool = False,
    admin_key: str | None = None,
) -> None:
    """Serve `repository` until SIGINT or SIGTERM, then drain and return; a second signal ends the server at once.

    Call it in the main thread. `on_ready` is told the addresses once. Raises as `EmbeddedServer` does, and
    `ServerError` where the server ends by itself.
    """
    server = EmbeddedServer(
        repository,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        log=log,
        client_shared_memory=client_shared_memory,
        admin_key=admin_key,
    )
    signals: list[int] = []

    def told(number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            server.kill()

    with StopSignals(told), server:
        if server.wait_ready(give_up=lambda: bool(signals)):
            on_ready(server.addresses)
        while not signals:
            server.check_alive()
            time.sleep(_POLL_SECONDS)


@contextmanager
def _bound(name: str, port: int) -> Iterator[int]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports in TIME_WAIT are free
        try:
            sock.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"port {port} ({name}) cannot be used on {HOST}: {getattr(error, 'strerror', None) or error}; "
                f"stop what listens there, or choose another with --{name}-port"
            ) from error
        yield int(sock.getsockname()[1])


def _claim_ports(wanted: dict[str, int]) -> dict[str, int]:
    """Check the ports, all at once, and replace 0 by a free one; they are free again when this returns."""
    with ExitStack() as stack:
        return {name: stack.enter_context(_bound(name, port)) for name, port in wanted.items()}


def _signal_group(group: int, number: int) -> bool:
    """Whether the process group was there to be signalled."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    """SIGKILL whatever is left of the process group, and wait shortly until it is gone."""
    until = time.monotonic() + 2
    while _signal_group(leader.pid, signal.SIGKILL) and time.monotonic() < until:
        leader.poll()
        time.sleep(_POLL_SECONDS)
    leader.wait()
