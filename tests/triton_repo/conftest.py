"""A small but real bundle, its model repository, and one server per test session."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from parure.bundle import Bundle, sha256_of
from parure.manifest import (
    MANIFEST_NAME,
    Component,
    FeatureLayer,
    FeatureLayout,
    Geometry,
    ImageEncoderSpec,
    LoopSpec,
    Manifest,
    Parity,
    Precision,
    TensorSpec,
)
from parure.onnx_executor import OnnxExecutor
from parure.solver import SolverSpec
from parure.solvers.grid import SolverGrid
from parure_triton.installation import Installation
from parure_triton.repository import write_repository
from parure_triton.server import EmbeddedServer

MAX_BATCH = 4
SIDE = 8
ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}

UNET = Component(
    name="unet",
    graph="onnx/unet.onnx",
    inputs=(
        TensorSpec(name="latents", dtype="float32", shape=(4, SIDE, SIDE)),
        TensorSpec(name="timestep", dtype="float32", shape=()),
    ),
    outputs=(TensorSpec(name="noise", dtype="float32", shape=(4, SIDE, SIDE)),),
    parameters=4 * 4 * 9,
    flops=1,
)
MASK_HEAD = Component(
    name="mask_head",
    graph="onnx/mask_head.onnx",
    inputs=(TensorSpec(name="features", dtype="float16", shape=(16,)),),
    outputs=(
        TensorSpec(name="mask", dtype="float16", shape=(16,)),
        TensorSpec(name="score", dtype="float16", shape=()),
    ),
    parameters=0,
    flops=1,
)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, ONNX_TYPES[spec.dtype], ["batch", *spec.shape])


def _save(
    component: Component, nodes: list[onnx.NodeProto], weights: dict[str, NDArray[np.generic]], root: Path
) -> None:
    graph = helper.make_graph(
        nodes,
        component.name,
        [_value(spec) for spec in component.inputs],
        [_value(spec) for spec in component.outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    path = root / component.graph
    path.parent.mkdir(parents=True, exist_ok=True)
    if component is UNET:
        location = f"{path.name}.data"
        onnx.save(
            model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=location, size_threshold=100
        )
    else:
        onnx.save(model, path)


def _write_graphs(root: Path) -> None:
    """unet: tanh(conv(latents)) + sin(timestep), with external data. mask_head: log(features), and its mean."""
    kernel = np.random.default_rng(0).standard_normal((4, 4, 3, 3)).astype(np.float32) / 6
    unet = [
        helper.make_node("Conv", ["latents", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Tanh", ["c"], ["h"]),
        helper.make_node("Sin", ["timestep"], ["s"]),
        helper.make_node("Unsqueeze", ["s", "axes"], ["u"]),
        helper.make_node("Add", ["h", "u"], ["noise"]),
    ]
    _save(UNET, unet, {"kernel": kernel, "axes": np.array([1, 2, 3])}, root)
    head = [
        helper.make_node("Log", ["features"], ["mask"]),
        helper.make_node("ReduceMean", ["mask", "last"], ["score"], keepdims=0),
    ]
    _save(MASK_HEAD, head, {"last": np.array([1])}, root)


def _write_solver(root: Path) -> SolverSpec:
    name = "solvers/ddim.npz"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    places = np.array([9.0, 9.0, 4.0])
    SolverGrid(
        evaluations=np.array([1, 2]),
        initial_noise_scale=np.ones(2),
        sigmas=np.linspace(0, 10, 10),
        timesteps=places,
        source=places,
        target=np.array([0.0, 4.0, 0.0]),
    ).save(root / name)
    return SolverSpec(name="ddim", rule="ddim", prediction_type="epsilon", grid=name, max_steps=2, options={"eta": 0.0})


def write_bundle(root: Path, components: tuple[Component, ...] = (UNET, MASK_HEAD)) -> Path:
    """A bundle whose manifest is valid and whose graphs compute something."""
    _write_graphs(root)
    solver = _write_solver(root)
    files = {path.relative_to(root).as_posix(): sha256_of(path) for path in sorted(root.rglob("*")) if path.is_file()}
    manifest = Manifest(
        pipeline="ornament_tryon",
        precision=Precision.FP32,
        max_batch=MAX_BATCH,
        components=components,
        features=FeatureLayout(
            layers=(FeatureLayer(layer="mid", tokens=4, channels=4, offset=0),), mask_head_layers=("mid",)
        ),
        geometry=Geometry(
            size=64, latent_size=SIDE, latent_channels=4, compose="mask", preview=((0.0, 0.0, 0.0),) * 5, feather=0.02
        ),
        image_encoder=ImageEncoderSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        loop=LoopSpec(default_steps=2, default_solver="ddim", guidance="none", ornament_features_cacheable=True),
        solvers=(solver,),
        parity=Parity(components=(), loop_tolerance=1e-3, loop_max_relative_error=0.0, trajectory=()),
        checkpoint_sha256="0" * 64,
        tools={"onnx": onnx.__version__},
        files=files,
    )
    (root / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2))
    return root


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("served") / "repository"
    write_repository(bundle, out, threads=1)
    return out


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    with EmbeddedServer(repository) as running:
        running.wait_ready(60)
        yield running


@pytest.fixture(scope="session")
def sharing(repository: Path) -> Iterator[EmbeddedServer]:
    """As `server`, and clients may share memory with it."""
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    with EmbeddedServer(repository, client_shared_memory=True) as running:
        running.wait_ready(60)
        yield running


@pytest.fixture(scope="session")
def misbehaving(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """As `sharing`, but its U-Net answers wrongly, in the way that the timestep names: models/misbehaving.py."""
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("misbehaving") / "repository"))
    shutil.copyfile(Path(__file__).parent / "models" / "misbehaving.py", copy / "unet" / "1" / "model.py")
    with EmbeddedServer(copy, client_shared_memory=True) as running:
        running.wait_ready(60)
        yield running


@pytest.fixture(scope="session")
def in_process(bundle: Path) -> Iterator[OnnxExecutor]:
    executor = OnnxExecutor(Bundle.open(bundle), threads=1)
    yield executor
    executor.close()


Serving = Callable[..., AbstractContextManager[dict[str, int]]]


@pytest.fixture
def native_server(tmp_path: Path) -> Serving:
    """Starts Triton as a GPU host would: `flags` of a deployment, and a backend of Triton's own.

    The wheel brings the python backend alone, so `stand_in` (a python-based backend) takes the other one's place, and
    instances move to the CPU. Everything else is the generated repository before the real core: parsing, validation,
    reshaping, warm-up, batching. Yields the ports once every model is ready.
    """
    pytest.importorskip("pytriton", reason="needs the Triton server of the nvidia-pytriton wheel")
    found = Installation.find()

    @contextmanager
    def serve(repository: Path, backend: str, stand_in: str, flags: list[str]) -> Iterator[dict[str, int]]:
        backends = tmp_path / "backends"
        for folder in ("python", backend):
            (backends / folder).mkdir(parents=True, exist_ok=True)
        for source in (*(path for path in found.backend.iterdir() if path.is_file()), found.stub):
            shutil.copy(source, backends / "python")
        if backend != "python":
            (backends / backend / "model.py").write_text(stand_in)
        moved = Path(shutil.copytree(repository, tmp_path / "served"))
        for config in moved.glob("*/config.pbtxt"):
            text = config.read_text().replace("  gpus: [0, 1]\n", "").replace("KIND_GPU", "KIND_CPU")
            config.write_text(text)
        ports = free_ports("http", "grpc", "metrics")
        command = [
            str(found.binary),
            *(flag.replace("=/models", f"={moved}") for flag in flags),
            f"--backend-directory={backends}",
            *(f"--{name}-port={port}" for name, port in ports.items()),
            *(f"--{name}-address=127.0.0.1" for name in ports),
        ]
        log = tmp_path / "triton.log"
        with log.open("wb") as stream:
            server = subprocess.Popen(command, stdout=stream, stderr=stream, env=found.environment(), cwd=tmp_path)
        try:
            wait_ready(server, ports["http"], log)
            yield ports
        finally:
            server.terminate()
            try:
                server.wait(60)  # Triton gives up after 30
            finally:
                server.kill()

    return serve


def free_ports(*names: str) -> dict[str, int]:
    with ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in names}
        return {name: int(each.getsockname()[1]) for name, each in sockets.items()}


def wait_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError(f"Triton is not ready: {log.read_text()[-4000:]}")
