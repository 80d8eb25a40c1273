"""One component -> one ONNX graph with a dynamic batch, checked and loaded."""

from __future__ import annotations

import gc
import logging
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from parure.errors import ExportError
from parure.manifest import Component, TensorSpec
from parure.modes import DEEP_OUTPUT, SHALLOW_UNET
from parure_export.graph_flops import graph_flops
from parure_export.model.storage import in_float32

FOLDER = "onnx"  # of the graphs in a bundle
OPSET = 23  # has `Attention` and `GroupNormalization`, which engines fuse
INLINE_BYTES = 1_500_000_000  # protobuf stops at 2 GB; beyond this, weights go into a file of their own

Shape = tuple[int, ...]

OUTPUTS = {
    "vae_encoder": "latents",
    "image_encoder": "tokens",
    "reference_net": "features",
    "mask_head": "predicted_mask",  # its input is called mask, and a graph's names are unique
    "unet": "noise",
    SHALLOW_UNET: "noise",
    "vae_decoder": "image",
}
_UNET_INPUTS = ("latents", "masked_latents", "mask", "timestep", "tokens", "ornament_features", "model_features")
INPUTS = {
    "vae_encoder": ("image",),
    "image_encoder": ("pixels",),
    "reference_net": ("latents", "mask", "tokens"),
    "mask_head": ("model_features", "ornament_features", "mask"),
    "unet": _UNET_INPUTS,
    SHALLOW_UNET: (*_UNET_INPUTS, DEEP_OUTPUT),
    "vae_decoder": ("latents",),
}


@dataclass(frozen=True)
class Call:
    """One captured call of a component: its inputs in order and its output, a batch each; `deep` of a U-Net's."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    deep: Tensor | None = None

    def outputs(self, name: str) -> dict[str, Tensor]:
        """By name, of the component `name`."""
        return {OUTPUTS[name]: self.output} | ({} if self.deep is None else {DEEP_OUTPUT: self.deep})


@dataclass(frozen=True)
class Traced:
    """A component's graph in memory; `weights` are those of the module, `nodes` counts them, by operator, as traced."""

    component: Component
    model: ir.Model
    weights: Sequence[ir.Value]
    nodes: Mapping[str, int]

    def forget_weights(self) -> None:
        """The exporter's caches keep its graph alive: without its weights that costs little."""
        for value in (*self.weights, *self.model.graph.initializers.values()):
            value.const_value = None
        gc.collect()


def trace_component(name: str, module: nn.Module, call: Call, max_batch: int) -> Traced:
    """The graph of `module` for batches of 1 to `max_batch`; raises `ExportError` with the exporter's reason.

    An input that the graph does not look at is none of the component's.
    `call` gives the tensors to trace with. `module` becomes fp32, whatever it was stored as. The exporter traces at
    batch 2: a batch of one would be specialised.
    """
    arguments = {key: _two(value) for key, value in zip(INPUTS[name], call.inputs, strict=True)}
    batch = torch.export.Dim("batch", min=1, max=max(2, max_batch))
    module.float()
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                kwargs=arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS[name]),
                output_names=list(call.outputs(name)),
                dynamic_shapes={key: {0: batch} for key in arguments},
                optimize=False,
                verbose=False,
            )
            assert program is not None
            nodes = Counter(node.op_type for node in program.model.graph)
            program.optimize()
    except Exception as error:
        raise _failure(name, error) from error
    model: ir.Model = program.model
    _strip(model)
    used = _drop_unused_inputs(model.graph)
    component = Component(
        name=name,
        graph=f"{FOLDER}/{name}.onnx",
        inputs=tuple(_spec(key, value) for key, value in arguments.items() if key in used),
        outputs=tuple(_spec(key, value) for key, value in call.outputs(name).items()),
        parameters=_parameters(model.graph),
        flops=graph_flops(model.graph),
    )
    return Traced(component, model, list(model.graph.initializers.values()), nodes)


def save_graph(model: ir.Model, path: Path) -> None:
    """Write `model` to `path`, checked, large weights into a file of their own; raises `ExportError`."""
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    external = size > INLINE_BYTES
    try:
        ir.save(model, path, external_data=f"{path.name}.data" if external else None)
        onnx.checker.check_model(str(path), full_check=not external)
    except OSError:
        raise
    except Exception as error:
        raise _failure(path.stem, error) from error


def _failure(name: str, error: Exception) -> ExportError:
    reason = str(error).strip().splitlines()
    return ExportError(f"component {name} cannot be exported to ONNX: {reason[0] if reason else error!r}")


def _strip(model: ir.Model) -> None:
    """Take out what tracing noted of the code: files and lines of the machine that exported."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for thing in (model, graph, *graph, *values):
        thing.metadata_props.clear()


def _drop_unused_inputs(graph: ir.Graph) -> set[str | None]:
    """The names of those that are left."""
    for value in list(graph.inputs):
        if not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)
    return {value.name for value in graph.inputs}


def _parameters(graph: ir.Graph) -> int:
    """Elements of the graph's weights; what tracing found unused is not among them."""
    weights = (v.const_value for v in graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    return sum(weight.size for weight in weights if weight is not None)


def count_flops(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Floating-point operations of one call (two per multiply-add), counted without computing anything."""
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with in_float32(module), fakes as fake, torch.no_grad(), counter:
        module(*(fake.from_tensor(value) for value in inputs))
    return int(counter.get_total_flops())


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # torch leaves it out


def session_inputs(name: str, call: Call, taken: Collection[str]) -> Mapping[str, Any]:
    """A captured call's inputs as ONNX Runtime takes them: those that are `taken` by the graph."""
    return {key: value.numpy() for key, value in zip(INPUTS[name], call.inputs, strict=True) if key in taken}


def _two(value: Tensor) -> Tensor:
    return value[:2] if len(value) > 1 else torch.cat([value, value])


def _spec(name: str, value: Tensor) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=tuple(value.shape[1:]))


class _quiet:
    """The exporter talks through warnings and the root logger; export says what matters itself."""

    def __enter__(self) -> None:
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *exception: object) -> None:
        logging.disable(self._level)
        self._warnings.__exit__(*exception)  # type: ignore[arg-type]
