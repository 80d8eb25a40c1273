"""`Model` -> `config.pbtxt`, by way of Triton's own protobuf; read back and compared before anything uses it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup  # type: ignore[import-untyped]

from parure.errors import ServerError
from parure_triton.model import Accelerator, Backend, Batching, Model, ModelTensor, Placement

VERSION = 1  # the only version of every model
RATE_RESOURCE = "gpu"


def render_config(model: Model) -> str:
    """The `config.pbtxt` of `model`; raises `ServerError` where it reads back as anything else."""
    message = json_format.ParseDict(_described(model), ModelConfig())
    text: str = text_format.MessageToString(message, use_short_repeated_primitives=True, as_utf8=True)
    found = read_config(text_format.Parse(text, ModelConfig()), model.bundle)
    for part in fields(Model):
        actual, expected = getattr(found, part.name), getattr(model, part.name)
        if actual != expected:
            raise ServerError(
                f"generated config.pbtxt of {model.name}: {part.name} reads back as {actual}; expected {expected}; "
                "this is a bug of parure, please report it"
            )
    return (
        f"# Written by parure from the manifest of bundle {model.bundle[:12]}; "
        f"writing the repository again replaces it.\n{text}"
    )


def _described(model: Model) -> dict[str, Any]:
    """The configuration as protobuf's JSON; what Triton does by default is left out."""
    config: dict[str, Any] = {
        "name": model.name,
        "backend": model.backend.value,
        "max_batch_size": model.max_batch,
        "version_policy": {"specific": {"versions": [VERSION]}},
        "input": [_tensor(tensor) for tensor in model.inputs],
        "output": [_tensor(tensor) for tensor in model.outputs],
        "instance_group": [_instances(model)],
        "parameters": {key: {"string_value": value} for key, value in model.parameters.items()},
        "model_warmup": [_warmup(model, batch) for batch in model.warmup_batches],
    }
    if model.file:
        config["default_model_filename"] = model.file
    if model.file_by_capability:
        config["cc_model_filenames"] = dict(model.file_by_capability)
    if model.max_batch:
        config["dynamic_batching"] = _batching(model.batching)
    if model.decoupled:
        config["model_transaction_policy"] = {"decoupled": True}
    optimization: dict[str, Any] = {}
    if model.accelerator:
        chosen = {"name": model.accelerator.name, "parameters": dict(model.accelerator.parameters)}
        optimization["execution_accelerators"] = {"gpu_execution_accelerator": [chosen]}
    if model.graph_batches:
        # Shapes are static but for the batch: a graph without shapes of its own takes those of the engine.
        specs = [{"batch_size": batch} for batch in model.graph_batches]
        optimization["cuda"] = {"graphs": True, "graph_spec": specs}
    if optimization:
        config["optimization"] = optimization
    return config


def _tensor(tensor: ModelTensor) -> dict[str, Any]:
    described: dict[str, Any] = {"name": tensor.name, "data_type": tensor.data_type, "dims": list(tensor.dims)}
    described |= {"reshape": {"shape": []}} if tensor.scalar else {}
    return described | ({"optional": True} if tensor.optional else {})


def _batching(batching: Batching) -> dict[str, Any]:
    described: dict[str, Any] = {}
    if batching.preferred:
        described["preferred_batch_size"] = list(batching.preferred)
    if batching.delay_us:
        described["max_queue_delay_microseconds"] = batching.delay_us
    if batching.max_queue or batching.timeout_us:
        described["default_queue_policy"] = {
            "timeout_action": "REJECT",
            "default_timeout_microseconds": batching.timeout_us,
            "allow_timeout_override": True,
            "max_queue_size": batching.max_queue,
        }
    return described


def _instances(model: Model) -> dict[str, Any]:
    placement = model.placement
    described: dict[str, Any] = {
        "count": model.instances,
        "kind": "KIND_CPU" if placement.gpus is None else "KIND_GPU",
    }
    if placement.gpus:
        described["gpus"] = list(placement.gpus)
    if placement.rate_limited:
        described["rate_limiter"] = {"resources": [{"name": RATE_RESOURCE, "count": 1}]}
    return described


def _warmup(model: Model, batch: int) -> dict[str, Any]:
    """Zeros of the real shapes: random bytes would hold numbers that are not finite."""
    inputs = {t.name: {"data_type": t.data_type, "dims": list(t.dims), "zero_data": True} for t in model.inputs}
    return {"name": f"batch-{batch}", "batch_size": batch, "inputs": inputs}


def read_config(parsed: ModelConfig, bundle: str) -> Model:
    """What Triton will read: every field that `Model` has, from the protobuf alone (but for `bundle`)."""

    def tensors(side: Any) -> tuple[ModelTensor, ...]:
        return tuple(
            ModelTensor(
                t.name, DataType.Name(t.data_type), tuple(t.dims), t.HasField("reshape"), getattr(t, "optional", False)
            )
            for t in side
        )

    group = parsed.instance_group[0]
    cuda = parsed.optimization.cuda
    accelerators = parsed.optimization.execution_accelerators.gpu_execution_accelerator
    return Model(
        name=parsed.name,
        bundle=bundle,
        max_batch=parsed.max_batch_size,
        instances=group.count,
        inputs=tensors(parsed.input),
        outputs=tensors(parsed.output),
        parameters={key: value.string_value for key, value in parsed.parameters.items()},
        backend=Backend(parsed.backend),
        decoupled=parsed.model_transaction_policy.decoupled,
        batching=_read_batching(parsed),
        placement=Placement(
            gpus=tuple(group.gpus) if group.kind == ModelInstanceGroup.KIND_GPU else None,
            rate_limited=[(r.name, r.count) for r in group.rate_limiter.resources] == [(RATE_RESOURCE, 1)],
        ),
        file=parsed.default_model_filename,
        file_by_capability=dict(parsed.cc_model_filenames),
        accelerator=Accelerator(accelerators[0].name, dict(accelerators[0].parameters)) if accelerators else None,
        warmup_batches=tuple(warmup.batch_size for warmup in parsed.model_warmup),
        graph_batches=tuple(spec.batch_size for spec in cuda.graph_spec) if cuda.graphs else (),
    )


def _read_batching(parsed: ModelConfig) -> Batching:
    found = parsed.dynamic_batching
    policy = found.default_queue_policy
    return Batching(
        preferred=tuple(found.preferred_batch_size),
        delay_us=found.max_queue_delay_microseconds,
        max_queue=policy.max_queue_size,
        timeout_us=policy.default_timeout_microseconds,
    )
