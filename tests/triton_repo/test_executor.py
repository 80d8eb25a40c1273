"""`TritonExecutor` against a real server: the same bits as in-process, typed errors, deadlines."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from parure.bundle import Bundle
from parure.errors import (
    BundleMismatch,
    CallRefused,
    InputError,
    InvalidReply,
    ModelUnavailable,
    ServerError,
    ServerUnavailable,
)
from parure.executor import Array, Arrays
from parure.onnx_executor import OnnxExecutor
from parure.solver import Solver
from parure.triton import TritonExecutor
from parure.triton_transport import Transport, open_transport
from parure_bench.stopped import stopped
from parure_triton.server import EmbeddedServer


def unet_inputs(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    latents = generator.standard_normal((batch, 4, 8, 8)).astype(np.float32)
    return {"latents": latents, "timestep": generator.uniform(0, 999, batch).astype(np.float32)}


def head_inputs(batch: int) -> Arrays:
    return {"features": np.random.default_rng(1).uniform(0.1, 9, (batch, 16)).astype(np.float16)}


@pytest.fixture(params=["grpc", "http"])
def url(request: pytest.FixtureRequest, server: EmbeddedServer) -> str:
    return str(getattr(server.addresses, request.param))


@pytest.fixture
def executor(url: str) -> Iterator[TritonExecutor]:
    with TritonExecutor(url, deadline=20) as opened:
        yield opened


def stub_of(server: EmbeddedServer, model: str) -> int:
    for process in psutil.Process(server.pid).children(recursive=True):
        if any(part.endswith(f"/{model}/1/model.py") for part in process.cmdline()):
            return process.pid
    raise AssertionError(f"no stub runs {model}")


def executions(server: EmbeddedServer, model: str) -> int:
    text = urllib.request.urlopen(server.addresses.metrics, timeout=30).read().decode()
    found = re.search(rf'nv_inference_exec_count{{model="{model}",version="1"}} (\d+)', text)
    return int(found.group(1)) if found else 0


def test_the_manifest_comes_from_the_server(executor: TritonExecutor, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert (executor.manifest, executor.identity) == (opened.manifest, opened.identity)
    assert executor.name == f"triton-{executor.url.split(':')[0]}"


def test_solvers_come_from_the_server(executor: TritonExecutor, bundle: Path) -> None:
    local = Solver.load(executor.manifest.solvers[0], bundle).table(2)
    remote = executor.solver("ddim").table(2)
    assert np.array_equal(local.timesteps, remote.timesteps)
    assert all(np.array_equal(value, getattr(remote.rows, name)) for name, value in vars(local.rows).items())


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_served_bits_are_those_of_the_process(
    executor: TritonExecutor, in_process: OnnxExecutor, batch: int
) -> None:
    for component, inputs in (("unet", unet_inputs(batch)), ("mask_head", head_inputs(batch))):
        served, local = executor.run(component, inputs), in_process.run(component, inputs)
        assert served.keys() == local.keys()
        for name, array in local.items():
            assert served[name].dtype == array.dtype and served[name].shape == array.shape
            assert served[name].tobytes() == array.tobytes()


def test_arrays_that_are_not_contiguous_travel_right(executor: TritonExecutor, in_process: OnnxExecutor) -> None:
    inputs = unet_inputs(2)
    strided = inputs | {"latents": np.repeat(inputs["latents"], 2, axis=3)[..., ::2]}
    assert np.array_equal(executor.run("unet", strided)["noise"], in_process.run("unet", inputs)["noise"])


def test_concurrent_requests_meet_in_a_batch_and_get_their_own_answers(
    executor: TritonExecutor, server: EmbeddedServer, in_process: OnnxExecutor
) -> None:
    batches = [1, 1, 2, 1, 1, 2]
    before = executions(server, "unet")
    with ThreadPoolExecutor(len(batches)) as pool:
        with stopped(stub_of(server, "unet")):
            futures = [pool.submit(executor.run, "unet", unet_inputs(b, seed)) for seed, b in enumerate(batches)]
            time.sleep(0.5)  # the first occupies the model; the others wait in the batcher
        replies = [future.result()["noise"] for future in futures]
    for seed, (batch, reply) in enumerate(zip(batches, replies, strict=True)):
        np.testing.assert_allclose(
            reply, in_process.run("unet", unet_inputs(batch, seed))["noise"], rtol=3e-4, atol=3e-6
        )
    time.sleep(0.1)
    assert executions(server, "unet") - before < len(batches)


def test_many_threads_share_one_executor(executor: TritonExecutor, in_process: OnnxExecutor) -> None:
    def check(seed: int) -> bool:
        inputs = unet_inputs(1, seed)
        return np.allclose(executor.run("unet", inputs)["noise"], in_process.run("unet", inputs)["noise"], atol=3e-6)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(check, range(100)))


@pytest.mark.parametrize(
    "change",
    [
        {"latents": np.zeros((1, 4, 8, 8), np.float64)},
        {"latents": np.zeros((1, 4, 8, 7), np.float32)},
        {"timestep": np.zeros(2, np.float32)},
        {"extra": np.zeros(1, np.float32)},
        {"latents": np.zeros((5, 4, 8, 8), np.float32), "timestep": np.zeros(5, np.float32)},
        {"latents": np.zeros((0, 4, 8, 8), np.float32), "timestep": np.zeros(0, np.float32)},
    ],
)
def test_inputs_that_the_manifest_does_not_allow_are_not_sent(executor: TritonExecutor, change: Arrays) -> None:
    with pytest.raises(InputError, match="unet"):
        executor.run("unet", unet_inputs(1) | dict(change))


def test_malformed_requests_get_an_error_and_the_server_lives_on(executor: TritonExecutor, url: str) -> None:
    transport = open_transport(url, 10)
    right = unet_inputs(1)
    latents, timestep = right["latents"], np.zeros((1, 1), np.float32)
    malformed: list[dict[str, Array]] = [
        {},
        {"latents": latents},
        {"latents": latents, "timestep": timestep.astype(np.float64)},
        {"latents": np.zeros((1, 4, 8, 9), np.float32), "timestep": timestep},
        {"latents": np.zeros(1, np.float32), "timestep": timestep},
        {"latents": np.zeros((9, 4, 8, 8), np.float32), "timestep": np.zeros((9, 1), np.float32)},
    ]
    for inputs in malformed:
        with (
            TritonExecutor(url, transport=_Sending(transport, inputs)) as sender,
            pytest.raises(ServerError) as refused,
        ):
            sender.run("unet", right)
        assert refused.type is CallRefused and "refused the call" in str(refused.value)
    transport.close()
    assert executor.run("unet", right)["noise"].shape == (1, 4, 8, 8)


def test_the_manifest_model_hands_out_nothing_else(executor: TritonExecutor) -> None:
    for name in ("../model.py", "/etc/passwd", ""):
        with pytest.raises(ServerError, match="not handed out"):
            executor._fetch(name)


def test_numbers_that_are_not_finite_are_an_invalid_reply(executor: TritonExecutor) -> None:
    inputs = head_inputs(2)
    inputs["features"][1, 3] = -1
    with pytest.raises(InvalidReply, match="mask holds numbers that are not finite"):
        executor.run("mask_head", inputs)


class _Relay:
    """A transport that passes everything on."""

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.name = inner.name

    def infer(self, model: str, inputs: Arrays) -> dict[str, Array]:
        return self.inner.infer(model, inputs)

    def parameters(self, model: str) -> dict[str, str]:
        return self.inner.parameters(model)

    def version(self) -> str:
        return self.inner.version()

    def live(self) -> bool:
        return self.inner.live()

    def close(self) -> None:
        pass


class _Sending(_Relay):
    """Sends `inputs` to the U-Net, whatever it is asked to send."""

    def __init__(self, inner: Transport, inputs: Arrays) -> None:
        super().__init__(inner)
        self.inputs = inputs

    def infer(self, model: str, inputs: Arrays) -> dict[str, Array]:
        return super().infer(model, self.inputs if model == "unet" else inputs)


class _Answering(_Relay):
    """Answers for the U-Net with `reply`."""

    def __init__(self, inner: Transport, reply: dict[str, Array]) -> None:
        super().__init__(inner)
        self.reply = reply

    def infer(self, model: str, inputs: Arrays) -> dict[str, Array]:
        return self.reply if model == "unet" else super().infer(model, inputs)


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ({}, "is missing"),
        ({"noise": np.zeros((2, 4, 8, 8), np.float32)}, r"expected float32 \[1, 4, 8, 8\]"),
        ({"noise": np.zeros((1, 4, 8, 8), np.float16)}, "is float16"),
        ({"noise": np.full((1, 4, 8, 8), np.inf, np.float32)}, "not finite"),
    ],
)
def test_a_reply_that_is_not_what_the_manifest_says_is_invalid(
    url: str, reply: dict[str, Array], complaint: str
) -> None:
    transport = open_transport(url, 10)
    executor = TritonExecutor(url, transport=_Answering(transport, reply))
    with pytest.raises(InvalidReply, match=complaint):
        executor.run("unet", unet_inputs(1))
    transport.close()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_server_is_said_with_the_address_and_the_remedy(scheme: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"{scheme}://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServerUnavailable, match=rf"{url}.*parure serve"):
        TritonExecutor(url)


@pytest.mark.parametrize(
    "url", ["grpc://", "ftp://host:1", "host:8001", "http://host:99999", "grpc://h:1/path", "http://"]
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected grpc://HOST:PORT"):
        TritonExecutor(url)


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf")])
def test_a_deadline_must_be_a_time(deadline: float) -> None:
    with pytest.raises(InputError, match="deadline"):
        TritonExecutor("grpc://127.0.0.1:1", deadline=deadline)


def test_a_server_of_another_bundle_is_refused(url: str) -> None:
    with pytest.raises(BundleMismatch, match="expected 0000"):
        TritonExecutor(url, expect_bundle="0" * 64)


def test_a_closed_executor_says_so(url: str) -> None:
    executor = TritonExecutor(url)
    executor.close()
    with pytest.raises(ServerError, match="is closed"):
        executor.run("unet", unet_inputs(1))


def test_a_component_that_does_not_exist_is_named(executor: TritonExecutor) -> None:
    with pytest.raises(KeyError, match="vae_decoder"):
        executor.run("vae_decoder", {})


def test_a_server_without_a_component_is_refused_with_its_name(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    shutil.rmtree(tmp_path / "repository" / "mask_head")
    with EmbeddedServer(tmp_path / "repository") as server:
        server.wait_ready(60)
        for url in (server.addresses.grpc, server.addresses.http):
            with pytest.raises(ModelUnavailable, match="lacks mask_head"):
                TritonExecutor(url)


def test_a_component_of_another_bundle_and_a_server_that_goes_away(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path / "repository")
    config = tmp_path / "repository" / "unet" / "config.pbtxt"
    identity = hashlib.sha256((repository / "manifest" / "1" / "files" / "manifest.json").read_bytes()).hexdigest()
    config.write_text(config.read_text().replace(identity, "f" * 64))
    with EmbeddedServer(tmp_path / "repository") as server:
        server.wait_ready(60)
        urls = (server.addresses.grpc, server.addresses.http)
        for url in urls:
            with pytest.raises(BundleMismatch, match=r"unet at .* comes from bundle ffff"):
                TritonExecutor(url)
        transports = [open_transport(url, 5) for url in urls]
        lying = [TritonExecutor(url, transport=_Lying(t, identity)) for url, t in zip(urls, transports, strict=True)]
        os.kill(server.pid, signal.SIGKILL)
        for executor in lying:
            with pytest.raises(ServerUnavailable):
                executor.run("unet", unet_inputs(1))


class _Lying(_Relay):
    """Claims that every component comes from the bundle `identity`."""

    def __init__(self, inner: Transport, identity: str) -> None:
        super().__init__(inner)
        self.identity = identity

    def parameters(self, model: str) -> dict[str, str]:
        return {"bundle": self.identity}
