"""The record beside every TensorRT plan, and the check that a plan has to pass before anything reads it.

A plan is executable: it is opened only if its bytes are those that the record names, and the record is of the
graph that the bundle holds.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import Field, ValidationError

from parure.bundle import Bundle, sha256_of
from parure.errors import BundleError
from parure.manifest import Frozen, Precision, Sha256, TensorSpec

ENGINES = "engines"
PLAN_SUFFIX = ".plan"


class BatchRange(Frozen):
    """The batch sizes that an engine takes: `min` to `max`, fastest at `opt`."""

    min: int
    opt: int
    max: int

    @property
    def static(self) -> bool:
        return self.min == self.max


class EngineRecord(Frozen):
    """What a plan is: `engines/<target>-<flavor>/<component>-b<batches>.json` beside `.plan`."""

    component: str
    target: str
    compute_capability: tuple[int, int] | None = Field(description="None: portable, Ampere and later")
    flavor: str
    flavor_version: str
    precision: Precision
    batches: BatchRange
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    refittable: bool
    stripped: bool
    weight_streaming: bool
    graph_sha256: Sha256
    family: Sha256 = Field(description="of the request without the values of weights: refits go within one family")
    refitted_from: Sha256 | None = Field(default=None, description="key of the engine that the weights were put into")
    plan_sha256: Sha256
    plan_bytes: int
    key: Sha256 = Field(description="of the request: the engine's name in the cache")
    layers: dict[str, int] = Field(description="layers of the network by type")
    inspected: dict[str, int] | None = Field(
        default=None, description="layers of the finished engine by type, from the inspector; None without a GPU"
    )
    types: dict[str, dict[str, int]] = Field(description="heavy layers by type and the type that they compute in")
    build_seconds: float
    peak_bytes: int = Field(description="peak memory of the building process")


def engine_folder(root: Path, target: str, flavor: str) -> Path:
    return root / ENGINES / f"{target}-{flavor}"


def open_record(path: Path) -> EngineRecord:
    """The record of the plan at `path`. Raises `BundleError`."""
    record = path.with_suffix(".json")
    try:
        return EngineRecord.model_validate_json(record.read_bytes())
    except OSError as error:
        raise BundleError(
            f"plan {path} has no record {record.name} ({error.strerror}); a plan without one is not opened; "
            "build it again with `parure build`"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "JSON"
        raise BundleError(f"{record}: {field}: {first['msg']}; build the engine again") from error


def verify_plan(path: Path, bundle: Bundle) -> EngineRecord:
    """The record of `path`, after the plan and the bundle's graph were found to be those that it names.

    Raises `BundleError` before a byte of the plan is interpreted.
    """
    record = open_record(path)
    if not path.is_file() or path.is_symlink():
        raise BundleError(f"plan {path} is missing or a link; build it again with `parure build`")
    if (actual := sha256_of(path)) != record.plan_sha256:
        raise BundleError(
            f"plan {path} has sha256 {actual[:12]}..., its record says {record.plan_sha256[:12]}...; it was altered "
            "or truncated; build it again"
        )
    if (graph := graph_hash(bundle, record.component)) != record.graph_sha256:
        raise BundleError(
            f"plan {path} was built from graph {record.graph_sha256[:12]}..., the bundle's {record.component} is "
            f"{graph[:12]}...; build it again"
        )
    return record


def plans(root: Path) -> list[Path]:
    """Every plan in the bundle at `root`, by target and name."""
    return sorted((root / ENGINES).glob(f"*/*{PLAN_SUFFIX}"))


def graph_hash(bundle: Bundle, component: str) -> str:
    """One hash for a component's graph and the files of its weights, from the manifest."""
    graph = bundle.manifest.component(component).graph
    parts = {name: digest for name, digest in bundle.manifest.files.items() if name.startswith(graph)}
    return hashlib.sha256("\n".join(f"{n} {d}" for n, d in sorted(parts.items())).encode()).hexdigest()
