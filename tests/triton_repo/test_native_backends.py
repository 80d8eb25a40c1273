"""Repositories for Triton's own backends before the real core, started with the flags of a deployment."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from parure.bundle import Bundle
from parure.onnx_executor import OnnxExecutor
from parure.triton import TritonExecutor
from parure_triton.deployment import Deployment, DeploymentOptions
from parure_triton.flags import ADMIN_HEADER, container_only
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository

KEY = "a-key-of-the-administrator"
# As Triton's onnxruntime backend: whatever shape the core hands over goes into the graph as it is.
ONNX_RUNTIME = """
import json, os
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.session = ort.InferenceSession(os.path.join(folder, config["default_model_filename"]))
        self.names = [output["name"] for output in config["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        arrays = self.session.run(self.names, {t.name(): t.as_numpy() for t in request.inputs()})
        return pb_utils.InferenceResponse([pb_utils.Tensor(n, a) for n, a in zip(self.names, arrays)])
"""
Serving = Callable[..., AbstractContextManager[dict[str, int]]]


def flags_of(bundle: Path, models: object, options: RepositoryOptions) -> list[str]:
    """Of the deployment, less those that this Triton is too old for."""
    facts = Deployment(Bundle.open(bundle).manifest, models, options, DeploymentOptions())  # type: ignore[arg-type]
    newer = {flag.partition("=")[0] for flag in container_only(1, 1)}
    return [flag for flag in facts.flags(KEY) if flag.partition("=")[0] not in newer]


def status(port: int, path: str, key: str | None = None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/{path}", headers={ADMIN_HEADER: key} if key else {})
    try:
        return int(urllib.request.urlopen(request, timeout=30).status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_onnxruntime_repository_serves_the_bits_of_the_process(
    bundle: Path, in_process: OnnxExecutor, native_server: Serving, tmp_path: Path
) -> None:
    options = RepositoryOptions.of(backend="onnxruntime", gpus=(0, 1), queue_delay=1000, rate_limit=2)
    models = write_repository(bundle, tmp_path / "models", options=options)
    flags = flags_of(bundle, models, options)
    generator = np.random.default_rng(0)
    with native_server(tmp_path / "models", "onnxruntime", ONNX_RUNTIME, flags) as ports:
        for url in (f"grpc://127.0.0.1:{ports['grpc']}", f"http://127.0.0.1:{ports['http']}"):
            with TritonExecutor(url, deadline=20) as executor:
                for batch in (1, 3, 4):
                    unet = {
                        "latents": generator.standard_normal((batch, 4, 8, 8)).astype(np.float32),
                        "timestep": generator.uniform(0, 999, batch).astype(np.float32),
                    }
                    head = {"features": generator.uniform(0.1, 9, (batch, 16)).astype(np.float16)}
                    for component, inputs in (("unet", unet), ("mask_head", head)):
                        served, local = executor.run(component, inputs), in_process.run(component, inputs)
                        for name, array in local.items():
                            assert served[name].shape == array.shape and served[name].tobytes() == array.tobytes()
        assert [status(ports["http"], "models/stats", key) for key in (None, "guess", KEY)] == [403, 403, 200]


def test_a_queue_that_is_full_refuses_and_the_others_are_answered(
    bundle: Path, native_server: Serving, tmp_path: Path
) -> None:
    slow = ONNX_RUNTIME.replace(
        "    def answer(",
        "    def answer(self, request):\n        import time; time.sleep(0.5)\n        return self.run(request)\n\n    def run(",
    )
    options = RepositoryOptions.of(backend="onnxruntime", max_queue=2, max_batch=1, warmup=False)
    models = write_repository(bundle, tmp_path / "models", options=options)
    inputs = {"features": np.ones((1, 16), np.float16)}

    def call(executor: TritonExecutor) -> str:
        try:
            executor.run("mask_head", inputs)
        except Exception as error:
            return str(error)
        return "answered"

    with (
        native_server(tmp_path / "models", "onnxruntime", slow, flags_of(bundle, models, options)) as ports,
        TritonExecutor(f"grpc://127.0.0.1:{ports['grpc']}", deadline=20) as executor,
        ThreadPoolExecutor(8) as pool,
    ):
        said = list(pool.map(call, [executor] * 8))
    refused = [words for words in said if "Exceeds maximum queue size" in words]
    assert refused and len(refused) + said.count("answered") == 8 and said.count("answered") >= 2


def test_what_the_autoscaler_reads_is_what_triton_tells(bundle: Path, native_server: Serving, tmp_path: Path) -> None:
    import parure_triton

    rule = Path(parure_triton.__file__).parent / "deploy" / "chart" / "templates" / "monitoring.yaml"
    named = set(re.findall(r"nv_\w+", rule.read_text()))
    options = RepositoryOptions.of()
    models = write_repository(bundle, tmp_path / "models", options=options)
    with native_server(tmp_path / "models", "python", "", flags_of(bundle, models, options)) as ports:
        with TritonExecutor(f"grpc://127.0.0.1:{ports['grpc']}", deadline=20) as executor:
            executor.run("mask_head", {"features": np.ones((1, 16), np.float16)})
        told = urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics']}/metrics", timeout=30).read().decode()
    assert len(named) == 2
    for name in named:
        assert re.search(rf'^{name}{{model="mask_head",version="1"}} \d+$', told, re.MULTILINE)


@pytest.mark.parametrize("count", [0, 1])
def test_warm_up_runs_before_a_model_is_ready(count: int, bundle: Path, native_server: Serving, tmp_path: Path) -> None:
    counting = ONNX_RUNTIME.replace(
        "        return [self.answer(request) for request in requests]",
        "        shapes = [{t.name(): t.as_numpy().shape for t in request.inputs()} for request in requests]\n"
        "        open('warm', 'a').write(json.dumps(shapes) + '\\n')\n"
        "        return [self.answer(request) for request in requests]",
    )
    options = RepositoryOptions.of(backend="onnxruntime", warmup=bool(count), gpus=(0, 1))
    models = write_repository(bundle, tmp_path / "models", options=options)
    with native_server(tmp_path / "models", "onnxruntime", counting, flags_of(bundle, models, options)):
        lines = (tmp_path / "warm").read_text().splitlines() if count else []
        assert (tmp_path / "warm").exists() == bool(count)
    one = {"latents": [1, 4, 8, 8], "timestep": [1]}  # the timestep arrives as the graph's [B]
    unet = [batch for batch in map(json.loads, lines) if "latents" in batch[0]]
    assert unet == [[one], [one] * 4] * count
