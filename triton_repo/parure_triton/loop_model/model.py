"""The python-backend model itself: many pictures at once in one instance, each in a thread of its own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from parure.bundle import identity_of, parse_manifest
from parure.errors import BundleError, ParureError
from parure.local_loop import Solvers
from parure.manifest import MANIFEST_NAME, Manifest
from parure.ornaments import OrnamentCache
from parure.solver import Solver
from parure.triton import BUNDLE_PARAMETER
from parure.tryon_wire import AT_WORK_PARAMETER, WAITING_PARAMETER
from parure_triton.loop_model.desk import Desk, Full
from parure_triton.loop_model.log import open_log
from parure_triton.loop_model.meeting import Meetings
from parure_triton.loop_model.metrics import Metrics
from parure_triton.loop_model.picture import Picture, Shop

CACHE_PARAMETER = "ornament_cache_bytes"
FEATURES_PARAMETER = "features_memory"
_MORE_PARTS = ("preprocess",)


class TritonPythonModel:
    """`execute` only takes requests in; they are answered from the threads of the desk."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the manifest and the solvers that stand beside the model; an error makes Triton refuse the model."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(
                f"numpy {np.__version__} makes Triton's python backend return empty outputs; install 'numpy<2'"
            )
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"] / "files"
        try:
            manifest = _manifest(folder, parameters[BUNDLE_PARAMETER])
            solvers = {spec.name: _solver(folder, manifest, spec.name) for spec in manifest.solvers}
        except (ParureError, OSError) as error:
            raise pb_utils.TritonModelException(f"{error}; write the repository again") from error
        model = args["model_name"]
        metrics = Metrics(model, [*(component.name for component in manifest.components), *_MORE_PARTS])
        self.shop = Shop(
            manifest=manifest,
            identity=parameters[BUNDLE_PARAMETER],
            solvers=Solvers(solvers.__getitem__),
            ornaments=OrnamentCache(int(parameters[CACHE_PARAMETER])),
            metrics=metrics,
            log=open_log(model),
            meetings=Meetings(),
            features_on_gpu=parameters[FEATURES_PARAMETER] == "gpu",
            streams=bool(config.get("model_transaction_policy", {}).get("decoupled")),
        )
        self.desk = Desk(int(parameters[AT_WORK_PARAMETER]), int(parameters[WAITING_PARAMETER]), metrics.places)

    def execute(self, requests: list[Any]) -> None:
        """Raises nothing: with responses to come, an exception here makes Triton 2.51 answer twice, and crash."""
        for request in requests:
            picture = Picture(self.shop, request.get_response_sender())
            try:
                picture.read(request)  # a wrong request does not wait for its refusal
                self.desk.take(picture)
            except ParureError as error:
                picture.refuse("refused", str(error), "INVALID_ARGUMENT")
            except Full:
                picture.refuse("full", self._full(), "UNAVAILABLE")
            except Exception as error:
                self.shop.log.exception("error", extra={"fields": {"request_id": picture.request_id}})
                picture.refuse("failed", f"{type(error).__name__}: {error}", "INTERNAL")

    def finalize(self) -> None:
        self.desk.close()

    def _full(self) -> str:
        return (
            f"{self.desk.at_work} pictures are at work and {self.desk.waiting} wait, which is all that this server "
            "takes; try again later"
        )


def _manifest(folder: Path, identity: str) -> Manifest:
    content = (folder / MANIFEST_NAME).read_bytes()
    if identity_of(content) != identity:
        raise BundleError(f"{folder / MANIFEST_NAME} is not of bundle {identity[:12]}...")
    return parse_manifest(content, str(folder / MANIFEST_NAME))


def _solver(folder: Path, manifest: Manifest, name: str) -> Solver:
    spec = next(spec for spec in manifest.solvers if spec.name == name)
    if hashlib.sha256((folder / spec.grid).read_bytes()).hexdigest() != manifest.files.get(spec.grid):
        raise BundleError(f"{folder / spec.grid} was altered or truncated")
    return Solver.load(spec, folder)
