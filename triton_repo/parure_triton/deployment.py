"""Beside a model repository: image, compose file and Helm chart that serve it with NVIDIA's Triton container.

    DIR/Dockerfile, compose.yaml, chart/Chart.yaml, chart/values.yaml, chart/values.schema.json, chart/templates/

The chart's templates are fixed; what depends on bundle and options stands in `values.yaml`.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
from pydantic import Field, ValidationError

from parure.errors import InputError
from parure.manifest import Frozen, Manifest, TensorSpec
from parure_triton.config import RATE_RESOURCE
from parure_triton.flags import container_only, locked_down
from parure_triton.model import Backend, ModelFolder
from parure_triton.options import RepositoryOptions
from parure_triton.placing import replacing
from parure_triton.tryon_models import DECOUPLED

FLOOR = (26, 6)  # the first container with the repairs of 2025 and client shared memory shut by default
KEY_VARIABLE = "PARURE_ADMIN_KEY"
RESPONSE_POOL = 32
_FILES = Path(__file__).parent / "deploy"
_MARK = "Written by parure"
_MiB = 1 << 20
_HTTP_DEFAULT = 64 * _MiB


class DeploymentOptions(Frozen):
    """docs/deploy.md has this as a table; the two are compared by a test."""

    container: str = Field(
        default="26.06-py3", pattern=r"^\d\d\.\d\d-py3$", description="tag of NVIDIA's Triton container, 26.06 or newer"
    )
    drain: int = Field(default=30, ge=1, le=3600, description="seconds that calls in flight have after SIGTERM")
    client_shm: bool = Field(default=False, description="clients on the same host may register shared memory")

    @classmethod
    def of(cls, **given: object) -> DeploymentOptions:
        """As the constructor; raises `InputError` naming the first option that is wrong."""
        try:
            options = cls(**given)  # type: ignore[arg-type]
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0])
            raise InputError(f"{name} is {given.get(name)!r}; expected {cls.model_fields[name].description}") from error
        year, month = (int(part) for part in re.findall(r"\d\d", options.container)[:2])
        if (year, month) < FLOOR:
            raise InputError(
                f"container {options.container} is older than {FLOOR[0]}.{FLOOR[1]:02}, which repaired holes that "
                "clients could use; name that or a newer one"
            )
        return options


@dataclass(frozen=True)
class Deployment:
    """What the files say. Sizes in bytes; `gpus` 0: none is asked for."""

    manifest: Manifest
    models: Sequence[ModelFolder]
    repository: RepositoryOptions
    options: DeploymentOptions

    @property
    def identity(self) -> str:
        return self.models[0].model.bundle[:12]

    @property
    def version(self) -> str:
        return version("parure")

    @property
    def names(self) -> list[str]:
        return sorted(folder.model.name for folder in self.models)

    @property
    def gpus(self) -> int:
        placed = self.repository.placement_gpus
        return 0 if placed is None else len(placed) or 1

    @property
    def requirement(self) -> str:
        """What the image installs: components behind the python backend need ONNX Runtime, the others bring theirs."""
        extra = "" if self.repository.backend is not Backend.PYTHON else "[gpu]" if self.gpus else "[cpu]"
        return f"parure{extra}=={self.version}"

    @property
    def http_input_bytes(self) -> int:
        """The largest request of a full batch, and room for its JSON."""
        largest = max(_bytes(component.inputs) for component in self.manifest.components)
        return max(_HTTP_DEFAULT, largest * self.manifest.max_batch + _MiB)

    @property
    def shm_mib(self) -> int:
        """Through /dev/shm go the tensors of models behind the python backend, in and out, for each instance.

        The server loop passes the inputs and outputs of one component at a time for every picture at work.
        """
        largest = max(_bytes(component.inputs) + _bytes(component.outputs) for component in self.manifest.components)
        loops = sum(self.repository.at_work * largest for folder in self.models if folder.model.name in DECOUPLED)
        passing = loops + sum(
            folder.model.instances * self.manifest.max_batch * (_bytes(component.inputs) + _bytes(component.outputs))
            for folder in self.models
            for component in self.manifest.components
            if folder.model.name == component.name and folder.model.backend is Backend.PYTHON
        )
        return 256 + math.ceil(2 * passing / _MiB)

    @property
    def memory_mib(self) -> int:
        """Twice the files, since loading holds them beside what they become, and room for the server."""
        held = sum(path.stat().st_size for folder in self.models for path in folder.files.values())
        return 4096 + math.ceil(2 * held / _MiB) + self.shm_mib

    def flags(self, key: str, drain: str = "") -> list[str]:
        """Of `tritonserver`; `key` is whatever puts the administrator's key there, `drain` what puts the seconds."""
        shm = self.options.client_shm
        limit = self.repository.rate_limit
        rate = [f"--rate-limit-resource={RATE_RESOURCE}:{limit}", "--rate-limit=execution_count"] if limit else []
        return [
            "--model-repository=/models",
            "--log-format=ISO8601",
            *rate,
            *locked_down(key, drain or self.options.drain, client_shared_memory=shm),
            *container_only(self.http_input_bytes, RESPONSE_POOL, client_shared_memory=shm),
        ]


def write_deployment(deployment: Deployment, out: Path, repository: Path) -> None:
    """Write the files for the model repository at `repository` to `out`, whole or not at all.

    Raises `InputError` as `check_places` does, and where `out` holds anything else or cannot be written.
    """
    check_places(out, repository, deployment.repository)
    out, repository = out.resolve(), repository.resolve()
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["quoted"] = lambda value: json.dumps(value)
    known = {
        "d": deployment,
        "mark": _MARK,
        "key_variable": KEY_VARIABLE,
        "models_path": os.path.relpath(repository, out),
    }
    with replacing(out, "deployment", _is_ours) as staging:
        shutil.copytree(_FILES / "chart", staging / "chart", ignore=shutil.ignore_patterns("*.j2"))
        for template in sorted(path.relative_to(_FILES) for path in _FILES.rglob("*.j2")):
            text = templates.get_template(template.as_posix()).render(known)
            (staging / template).with_suffix("").write_text(text, encoding="utf-8")


def check_places(out: Path, repository: Path, options: RepositoryOptions) -> None:
    """Raises `InputError` where a folder lies in the other, or GPUs could not keep their numbers in a container."""
    out, repository = out.resolve(), repository.resolve()
    if out.is_relative_to(repository) or repository.is_relative_to(out):
        raise InputError(
            f"deployment {out} and model repository {repository} lie in each other; Triton takes every folder below "
            "its repository for a model; choose another --deploy"
        )
    gpus = options.gpus
    if gpus and sorted(gpus) != list(range(len(gpus))):
        raise InputError(f"gpus are {list(gpus)}; a container numbers its GPUs from 0; name {len(gpus)} of them so")


def _is_ours(entry: Path) -> bool:
    dockerfile = entry.parent / "Dockerfile"
    known = {path.name.removesuffix(".j2") for path in _FILES.iterdir()}
    return entry.name in known and dockerfile.is_file() and _MARK in dockerfile.read_text(errors="replace")


def _bytes(tensors: Sequence[TensorSpec]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
