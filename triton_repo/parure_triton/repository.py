"""Bundle -> Triton model repository: a python-backend model per component, and `manifest`, which describes them.

    OUT/<component>/config.pbtxt, 1/model.py, 1/<graph and its external data>
    OUT/manifest/config.pbtxt, 1/model.py, 1/files/manifest.json, 1/files/<solver grids>

The repository is self-contained and may be moved or copied to another host.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig  # type: ignore[import-untyped]

from parure.bundle import Bundle
from parure.errors import BundleError, InputError, ServerError
from parure.manifest import MANIFEST_NAME, Component, Precision, TensorSpec
from parure.triton import BUNDLE_PARAMETER, FILE_INPUT, FILE_OUTPUT, MANIFEST_MODEL, wire_type
from parure_triton.loop_model.meeting import MET
from parure_triton.tryon_models import INPUTS, MODELS, OUTPUTS, LoopOptions, data_type

_HERE = Path(__file__).parent
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ModelTensor:
    """A tensor as Triton declares it; `dims` leaves out the batch dimension of a model that batches."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False

    @classmethod
    def of(cls, spec: TensorSpec) -> ModelTensor:
        """A per-sample scalar becomes [1]: Triton has no tensors without dimensions."""
        return cls(spec.name, f"TYPE_{wire_type(spec)}", spec.shape or (1,))


@dataclass(frozen=True)
class Model:
    """What one `config.pbtxt` has to say. `max_batch` 0: the model does not batch."""

    name: str
    bundle: str
    max_batch: int
    instances: int
    inputs: tuple[ModelTensor, ...]
    outputs: tuple[ModelTensor, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    queue_delay: int = 0
    decoupled: bool = False


def write_repository(
    bundle: Path, out: Path, *, instances: int = 1, threads: int | None = None, loop: LoopOptions | None = None
) -> None:
    """Write the model repository of the bundle at `bundle` to `out`, whole or not at all.

    `instances` of every component, each with `threads` CPU threads (None: as many as the server's host has, as
    in-process). `loop` bounds the server loop, the models `tryon` and `tryon_unary`. An earlier repository of parure at `out` is replaced. Raises `BundleError` for a bundle that fails
    verification, `InputError` where `out` holds anything else or cannot be written.
    """
    for name, value in (("instances", instances), ("threads", threads)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected a whole number from 1 on")
    loop = loop or LoopOptions()
    opened = Bundle.open(bundle)
    if opened.manifest.precision is Precision.BF16:
        raise InputError(
            f"bundle {bundle} is bf16, which ONNX Runtime has no kernels for; export it as fp32 or fp16 to serve it"
        )
    out = out.resolve()
    with _replacing(out) as staging:
        for component in opened.manifest.components:
            _write_component(
                opened, component, staging, instances, threads or 0, loop.queue_delay * (component.name in MET)
            )
        _write_manifest_model(opened, staging)
        for name in MODELS:
            _write_loop_model(opened, name, staging, loop)


def render_config(model: Model) -> str:
    """The `config.pbtxt` of `model`, read back and compared; raises `ServerError` where they differ."""
    loader = jinja2.FileSystemLoader(_HERE / "templates")
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quoted"] = lambda text: json.dumps(str(text))
    text = environment.get_template("config.pbtxt.j2").render(model=model)
    _compare(model, text_format.Parse(text, ModelConfig()))
    return text


def _compare(model: Model, parsed: ModelConfig) -> None:
    """Field by field: what was asked for against what Triton will read."""

    def tensors(side: Iterable[Any]) -> tuple[ModelTensor, ...]:
        return tuple(
            ModelTensor(t.name, DataType.Name(t.data_type), tuple(t.dims), getattr(t, "optional", False)) for t in side
        )

    found = {
        "name": (parsed.name, model.name),
        "backend": (parsed.backend, "python"),
        "max_batch_size": (parsed.max_batch_size, model.max_batch),
        "inputs": (tensors(parsed.input), model.inputs),
        "outputs": (tensors(parsed.output), model.outputs),
        "instances": ([group.count for group in parsed.instance_group], [model.instances]),
        "dynamic_batching": (parsed.HasField("dynamic_batching"), model.max_batch > 0),
        "queue_delay": (
            parsed.dynamic_batching.max_queue_delay_microseconds,
            model.queue_delay if model.max_batch else 0,
        ),
        "decoupled": (parsed.model_transaction_policy.decoupled, model.decoupled),
        "parameters": ({k: v.string_value for k, v in parsed.parameters.items()}, model.parameters),
    }
    for name, (actual, expected) in found.items():
        if actual != expected:
            raise ServerError(
                f"generated config.pbtxt of {model.name}: {name} reads back as {actual}; expected {expected}; "
                "this is a bug of parure, please report it"
            )


def _write_component(
    bundle: Bundle, component: Component, root: Path, instances: int, threads: int, queue_delay: int
) -> None:
    if not _MODEL_NAME.fullmatch(component.name) or component.name in (MANIFEST_MODEL, *MODELS):
        raise BundleError(
            f"component {component.name!r} cannot be served under this name; "
            f"use letters, digits, '_', '-' and '.', and not {', '.join((MANIFEST_MODEL, *MODELS))}"
        )
    # External data stands beside its graph, and its name begins with the graph's.
    files = [name for name in bundle.manifest.files if name.startswith(component.graph)]
    if component.graph not in files:
        raise BundleError(f"bundle {bundle.root}: graph {component.graph} has no hash; export the bundle again")
    hashes = {f"sha256:{PurePosixPath(name).name}": bundle.manifest.files[name] for name in files}
    model = Model(
        name=component.name,
        bundle=bundle.identity,
        max_batch=bundle.manifest.max_batch,
        instances=instances,
        inputs=tuple(ModelTensor.of(spec) for spec in component.inputs),
        outputs=tuple(ModelTensor.of(spec) for spec in component.outputs),
        parameters={
            BUNDLE_PARAMETER: bundle.identity,
            "graph": PurePosixPath(component.graph).name,
            "threads": str(threads),
        }
        | hashes,
        queue_delay=queue_delay,
    )
    version = _write_model(model, root, "component.py")
    for name in files:
        shutil.copyfile(bundle.root / name, version / PurePosixPath(name).name)


def _write_manifest_model(bundle: Bundle, root: Path) -> None:
    model = Model(
        name=MANIFEST_MODEL,
        bundle=bundle.identity,
        max_batch=0,
        instances=1,
        inputs=(ModelTensor(FILE_INPUT, "TYPE_UINT8", (-1,)),),
        outputs=(ModelTensor(FILE_OUTPUT, "TYPE_UINT8", (-1,)),),
        parameters={BUNDLE_PARAMETER: bundle.identity},
    )
    _write_files(bundle, _write_model(model, root, "manifest.py"))


def _write_loop_model(bundle: Bundle, name: str, root: Path, loop: LoopOptions) -> None:
    model = Model(
        name=name,
        bundle=bundle.identity,
        max_batch=0,
        instances=1,
        inputs=tuple(ModelTensor(t.name, data_type(t), t.dims, t.optional) for t in INPUTS),
        outputs=tuple(ModelTensor(t.name, data_type(t), t.dims) for t in OUTPUTS),
        parameters={BUNDLE_PARAMETER: bundle.identity} | loop.parameters(),
        decoupled=MODELS[name],
    )
    _write_files(bundle, _write_model(model, root, "tryon.py"))


def _write_files(bundle: Bundle, version: Path) -> None:
    """The manifest and the solvers' grids."""
    for name in (MANIFEST_NAME, *(solver.grid for solver in bundle.manifest.solvers)):
        if name != MANIFEST_NAME and name not in bundle.manifest.files:
            raise BundleError(f"bundle {bundle.root}: solver grid {name} has no hash; export the bundle again")
        target = version / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.root / name, target)


def _write_model(model: Model, root: Path, code: str) -> Path:
    """Configuration and code of one model; the folder of its version 1, for its files."""
    version = root / model.name / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(render_config(model), encoding="utf-8")
    shutil.copyfile(_HERE / "models" / code, version / "model.py")
    return version


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and vanishes when it does not."""
    staging = out.parent / f".{out.name}.{secrets.token_hex(4)}.new"
    replaced = staging.with_suffix(".old")
    try:
        _refuse_foreign(out)
        staging.mkdir(parents=True)
        yield staging
        if out.exists():
            out.rename(replaced)
        try:
            staging.rename(out)
        except OSError:
            if replaced.exists():
                replaced.rename(out)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write the model repository {out}: {error.strerror or error} ({error.filename}); "
            "choose a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    """Only what parure wrote, or an empty folder, is ever replaced."""
    if not out.exists():
        return
    foreign = [out] if not out.is_dir() else sorted(entry for entry in out.iterdir() if not is_ours(entry))
    if foreign:
        raise InputError(
            f"{foreign[0]} is not part of a model repository that parure wrote, so {out} is left alone; "
            "choose another folder, or remove this one yourself"
        )


def is_ours(model: Path) -> bool:
    """Whether the folder is a model that parure wrote."""
    try:
        config = text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        return False
    return BUNDLE_PARAMETER in config.parameters
