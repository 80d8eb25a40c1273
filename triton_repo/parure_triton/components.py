"""Bundle and options -> the models of a repository. Every field comes from the manifest or from an option."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from parure.bundle import Bundle
from parure.errors import BundleError, InputError
from parure.manifest import MANIFEST_NAME, Component, Precision
from parure.triton import BUNDLE_PARAMETER, FILE_INPUT, FILE_OUTPUT, MANIFEST_MODEL
from parure_triton.engines import ServedPlan, chosen_targets, served_plans
from parure_triton.loop_model.meeting import MET
from parure_triton.model import Accelerator, Backend, Batching, Model, ModelFolder, ModelTensor, Placement
from parure_triton.options import Provider, RepositoryOptions
from parure_triton.tryon_models import DECOUPLED, loop_models

CODE = Path(__file__).parent / "models"
ENGINE_CACHE = "/tmp/parure-engines"  # of ONNX Runtime's TensorRT provider, in the server's own file system
_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MODEL_FILE = "model.py"
_TAKEN = (MANIFEST_MODEL, *DECOUPLED)
_CPU_DELAY = 1000  # microseconds, of the components where pictures meet


def repository_models(bundle: Bundle, options: RepositoryOptions) -> list[ModelFolder]:
    """Every model of the repository: one per component, the server loop, and `manifest`."""
    _check_precision(bundle, options.backend)
    files = _manifest_files(bundle)
    return [*_component_models(bundle, options), *loop_models(bundle, options, files), _manifest_model(bundle, files)]


def _check_precision(bundle: Bundle, backend: Backend) -> None:
    if bundle.manifest.precision is Precision.BF16 and backend is not Backend.TENSORRT:
        raise InputError(
            f"bundle {bundle.root} is bf16, which ONNX Runtime has no kernels for; export it as fp32 or fp16 to serve "
            "it, or build engines and use --backend tensorrt"
        )


def _component_models(bundle: Bundle, options: RepositoryOptions) -> list[ModelFolder]:
    components = bundle.manifest.components
    for component in components:
        if not _MODEL_NAME.fullmatch(component.name) or component.name in _TAKEN:
            raise BundleError(
                f"component {component.name!r} cannot be served under this name; "
                f"use letters, digits, '_', '-' and '.', and not {', '.join(_TAKEN)}"
            )
    if options.backend is Backend.TENSORRT:
        targets = chosen_targets(bundle, options.targets)
        return [_tensorrt(bundle, component, options, targets) for component in components]
    make = _python if options.backend is Backend.PYTHON else _onnxruntime
    return [make(bundle, component, options) for component in components]


def _python(bundle: Bundle, component: Component, options: RepositoryOptions) -> ModelFolder:
    files, hashes = _graph_files(bundle, component)
    parameters = {"graph": PurePosixPath(component.graph).name, "threads": str(options.threads or 0)}
    max_batch = _max_batch(bundle, options)
    model = _model(bundle, component, options, max_batch, (max_batch,), parameters | hashes)
    return ModelFolder(model, {_MODEL_FILE: CODE / "component.py"} | files)


def _onnxruntime(bundle: Bundle, component: Component, options: RepositoryOptions) -> ModelFolder:
    files, hashes = _graph_files(bundle, component)
    max_batch = _max_batch(bundle, options)
    threads = {} if options.threads is None else {"intra_op_thread_count": str(options.threads)}
    model = _model(
        bundle, component, options, max_batch, (max_batch,), threads | hashes,
        file=PurePosixPath(component.graph).name, accelerator=_accelerator(bundle, component, options, max_batch),
    )  # fmt: skip
    return ModelFolder(model, files)


def _accelerator(bundle: Bundle, component: Component, options: RepositoryOptions, max_batch: int) -> Accelerator:
    if options.provider is Provider.CUDA:
        # The default search measures every convolution anew for every batch size that comes along.
        return Accelerator("cuda", {"cudnn_conv_algo_search": "HEURISTIC", "cudnn_conv_use_max_workspace": "1"})

    def shapes(batch: int) -> str:
        return ",".join(f"{t.name}:{'x'.join(map(str, (batch, *t.shape)))}" for t in component.inputs)

    # Without a profile of its own the provider builds again whenever a larger batch comes.
    profile = {"min": 1, "opt": max_batch, "max": max_batch}
    return Accelerator(
        "tensorrt",
        {f"trt_profile_{name}_shapes": shapes(batch) for name, batch in profile.items()}
        | {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": f"{ENGINE_CACHE}/{bundle.identity[:12]}",
            "trt_timing_cache_enable": "1",
        },
    )


def _tensorrt(
    bundle: Bundle, component: Component, options: RepositoryOptions, targets: tuple[str, ...]
) -> ModelFolder:
    plans = served_plans(bundle, component.name, targets, options.max_batch)
    batches = plans[0].record.batches
    max_batch = options.max_batch or batches.max
    default = next((plan for plan in plans if not plan.capability), plans[0])
    model = _model(
        bundle, component, options, max_batch, (batches.opt, max_batch), _plan_parameters(plans),
        file=default.name, file_by_capability={plan.capability: plan.name for plan in plans if plan.capability},
    )  # fmt: skip
    return ModelFolder(model, {plan.name: plan.path for plan in plans})


def _plan_parameters(plans: tuple[ServedPlan, ...]) -> dict[str, str]:
    """Not read by Triton: they tell whoever looks at the server what it runs, and which TensorRT it needs."""
    versions = sorted({plan.record.flavor_version for plan in plans})
    return {"tensorrt_version": ", ".join(versions)} | {
        f"sha256:{plan.name}": plan.record.plan_sha256 for plan in plans
    }


def _model(
    bundle: Bundle, component: Component, options: RepositoryOptions, max_batch: int, natural: tuple[int, ...],
    parameters: Mapping[str, str], file: str = "", file_by_capability: Mapping[str, str] | None = None,
    accelerator: Accelerator | None = None,
) -> Model:  # fmt: skip
    """`natural`: batch sizes that run especially well, preferred unless the user names others."""
    preferred = _preferred(component, options, max_batch, natural)
    graphs = tuple(sorted({1, *preferred})) if options.backend is Backend.TENSORRT and options.cuda_graphs else ()
    # On a CPU a full batch would delay the start by seconds, and gain nothing.
    warmup = (1,) if options.placement_gpus is None else tuple(sorted({1, *preferred}))
    return Model(
        name=component.name,
        bundle=bundle.identity,
        max_batch=max_batch,
        instances=options.instances,
        inputs=tuple(ModelTensor.of(spec, options.backend) for spec in component.inputs),
        outputs=tuple(ModelTensor.of(spec, options.backend) for spec in component.outputs),
        parameters={BUNDLE_PARAMETER: bundle.identity, **parameters},
        backend=options.backend,
        batching=Batching(
            preferred=preferred,
            delay_us=_queue_delay(component, options),
            max_queue=options.max_queue or 0,
            timeout_us=int((options.queue_timeout or 0) * 1e6),
        ),
        placement=Placement(options.placement_gpus, rate_limited=options.rate_limit is not None),
        file=file,
        file_by_capability=file_by_capability or {},
        accelerator=accelerator,
        warmup_batches=warmup if options.warmup else (),
        graph_batches=graphs,
    )


def _queue_delay(component: Component, options: RepositoryOptions) -> int:
    if options.queue_delay is not None:
        return options.queue_delay
    return _CPU_DELAY if options.placement_gpus is None and component.name in MET else 0


def _preferred(
    component: Component, options: RepositoryOptions, max_batch: int, natural: tuple[int, ...]
) -> tuple[int, ...]:
    """Never 1: a batch of a preferred size does not wait for others, whatever the queue delay."""
    if options.preferred is None:
        return tuple(sorted({batch for batch in natural if 1 < batch <= max_batch}))
    if too_large := [batch for batch in options.preferred if batch > max_batch]:
        raise InputError(
            f"preferred batch size {too_large[0]} is more than {component.name} takes, which is {max_batch}; "
            "leave it out, or export and build with larger batches"
        )
    return tuple(sorted(set(options.preferred)))


def _max_batch(bundle: Bundle, options: RepositoryOptions) -> int:
    largest = bundle.manifest.max_batch
    if options.max_batch is not None and options.max_batch > largest:
        raise InputError(
            f"max_batch is {options.max_batch}, the bundle's is {largest}; export it with --max-batch "
            f"{options.max_batch}"
        )
    return options.max_batch or largest


def _graph_files(bundle: Bundle, component: Component) -> tuple[dict[str, Path], dict[str, str]]:
    """The graph and its external data, which stands beside it and whose name begins with the graph's; their hashes."""
    files = [name for name in bundle.manifest.files if name.startswith(component.graph)]
    if component.graph not in files:
        raise BundleError(f"bundle {bundle.root}: graph {component.graph} has no hash; export the bundle again")
    names = {PurePosixPath(file).name: file for file in files}
    hashes = {f"sha256:{name}": bundle.manifest.files[file] for name, file in names.items()}
    return {name: bundle.root / file for name, file in names.items()}, hashes


def _manifest_files(bundle: Bundle) -> dict[str, Path]:
    """The manifest and the solvers' grids."""
    files = {f"files/{MANIFEST_NAME}": bundle.root / MANIFEST_NAME}
    for solver in bundle.manifest.solvers:
        if solver.grid not in bundle.manifest.files:
            raise BundleError(f"bundle {bundle.root}: solver grid {solver.grid} has no hash; export the bundle again")
        files[f"files/{solver.grid}"] = bundle.root / solver.grid
    return files


def _manifest_model(bundle: Bundle, files: dict[str, Path]) -> ModelFolder:
    model = Model(
        name=MANIFEST_MODEL,
        bundle=bundle.identity,
        max_batch=0,
        instances=1,
        inputs=(ModelTensor(FILE_INPUT, "TYPE_UINT8", (-1,)),),
        outputs=(ModelTensor(FILE_OUTPUT, "TYPE_UINT8", (-1,)),),
        parameters={BUNDLE_PARAMETER: bundle.identity},
    )
    return ModelFolder(model, {_MODEL_FILE: CODE / "manifest.py"} | files)
