"""The tensorrt repository of SD 1.5 size before the real core, which parses and checks all of it."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from parure.bundle import Bundle
from parure_triton.deployment import Deployment, DeploymentOptions
from parure_triton.flags import container_only
from parure_triton.options import RepositoryOptions
from parure_triton.repository import write_repository
from parure_triton.tryon_models import DECOUPLED

# As Triton's tensorrt backend chooses its plan: by compute capability, else the default.
PLANS = """
import json, os
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = os.path.join(args["model_repository"], args["model_version"])
        for name in (config["default_model_filename"], *config["cc_model_filenames"].values()):
            if not open(os.path.join(folder, name)).read().startswith("stands for"):
                raise pb_utils.TritonModelException(f"{name} is no plan")

    def execute(self, requests):
        raise RuntimeError("never asked")
"""


def test_the_core_accepts_the_tensorrt_repository(
    sd15_bundle: Path, native_server: Callable[..., AbstractContextManager[dict[str, int]]], tmp_path: Path
) -> None:
    options = RepositoryOptions.of(
        backend="tensorrt", targets=("a100", "h100"), gpus=(0, 1), instances=2, queue_delay=500, rate_limit=2,
        max_queue=64, warmup=False,
    )  # fmt: skip
    models = write_repository(sd15_bundle, tmp_path / "models", options=options)
    for loop_model in DECOUPLED:  # they read the solvers' grids, which this bundle of shapes has none of
        shutil.rmtree(tmp_path / "models" / loop_model)
    facts = Deployment(Bundle.open(sd15_bundle).manifest, models, options, DeploymentOptions())
    newer = {flag.partition("=")[0] for flag in container_only(1, 1)}
    flags = [flag for flag in facts.flags("key") if flag.partition("=")[0] not in newer]
    with native_server(tmp_path / "models", "tensorrt", PLANS, flags) as ports:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{ports['http']}/v2/models/unet/config", timeout=30).read()
    config = json.loads(answer)
    assert config["backend"] == "tensorrt" and config["version_policy"]["specific"]["versions"] == [1]
    assert [spec["batch_size"] for spec in config["optimization"]["cuda"]["graph_spec"]] == [1, 4, 8]
    assert config["cc_model_filenames"] == {"8.0": "unet-b1-4-8.a100.plan", "9.0": "unet-b1-4-8.h100.plan"}
    timestep = next(tensor for tensor in config["input"] if tensor["name"] == "timestep")
    assert timestep["dims"] == [1] and timestep["reshape"] == {"shape": []}
    assert config["dynamic_batching"]["default_queue_policy"]["timeout_action"] == "REJECT"
    assert config["instance_group"][0]["rate_limiter"]["resources"][0]["name"] == "gpu"
