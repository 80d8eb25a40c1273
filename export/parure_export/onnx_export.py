"""One component -> one ONNX graph with a dynamic batch, checked and loaded."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from parure.errors import ExportError
from parure.manifest import Component, TensorSpec
from parure_export.graph_flops import graph_flops

OPSET = 23  # has `Attention` and `GroupNormalization`, which engines fuse
INLINE_BYTES = 1_500_000_000  # protobuf stops at 2 GB; beyond this, weights go into a file of their own

Shape = tuple[int, ...]

OUTPUTS = {
    "vae_encoder": "latents",
    "image_encoder": "tokens",
    "reference_net": "features",
    "mask_head": "predicted_mask",  # its input is called mask, and a graph's names are unique
    "unet": "noise",
    "vae_decoder": "image",
}
INPUTS = {
    "vae_encoder": ("image",),
    "image_encoder": ("pixels",),
    "reference_net": ("latents", "mask", "tokens"),
    "mask_head": ("model_features", "ornament_features", "mask"),
    "unet": (
        "latents",
        "masked_latents",
        "mask",
        "timestep",
        "tokens",
        "ornament_features",
        "model_features",
    ),
    "vae_decoder": ("latents",),
}


@dataclass(frozen=True)
class Call:
    """One captured call of a component: its inputs in order and its output, a batch each."""

    inputs: tuple[Tensor, ...]
    output: Tensor


@dataclass(frozen=True)
class Exported:
    """A component's graph on disk; `traced` counts the nodes, by operator, before the graph was simplified."""

    component: Component
    traced: Mapping[str, int]


def export_component(name: str, module: nn.Module, call: Call, folder: Path, max_batch: int) -> Exported:
    """Write `folder`/<name>.onnx for batches of 1 to `max_batch`; raises `ExportError` with the exporter's reason.

    `call` gives the tensors to trace with. The exporter traces at batch 2: a batch of one would be specialised.
    """
    path = folder / f"{name}.onnx"
    arguments = {key: _two(value) for key, value in zip(INPUTS[name], call.inputs, strict=True)}
    batch = torch.export.Dim("batch", min=1, max=max(2, max_batch))
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                kwargs=arguments,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(INPUTS[name]),
                output_names=[OUTPUTS[name]],
                dynamic_shapes={key: {0: batch} for key in arguments},
                optimize=False,
                verbose=False,
            )
            assert program is not None
            traced = Counter(node.op_type for node in program.model.graph)
            program.optimize()
            program.save(str(path), external_data=size > INLINE_BYTES)
        onnx.checker.check_model(str(path), full_check=size <= INLINE_BYTES)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise ExportError(f"component {name} cannot be exported to ONNX: {reason[0] if reason else error!r}") from error
    component = Component(
        name=name,
        graph=f"{folder.name}/{path.name}",
        inputs=tuple(_spec(key, value) for key, value in arguments.items()),
        outputs=(_spec(OUTPUTS[name], call.output),),
        parameters=_parameters(path),
        flops=graph_flops(ir.load(path).graph),
    )
    return Exported(component, traced)


def count_flops(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Floating-point operations of one call (two per multiply-add), counted without computing anything."""
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad(), counter:
        module(*(fake.from_tensor(value) for value in inputs))
    return int(counter.get_total_flops())


def _attention_flops(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))


_UNCOUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}  # torch leaves it out


def session_inputs(name: str, call: Call) -> Mapping[str, Any]:
    """A captured call's inputs as ONNX Runtime takes them."""
    return {key: value.numpy() for key, value in zip(INPUTS[name], call.inputs, strict=True)}


def _two(value: Tensor) -> Tensor:
    return value[:2] if len(value) > 1 else torch.cat([value, value])


def _spec(name: str, value: Tensor) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=tuple(value.shape[1:]))


def _parameters(path: Path) -> int:
    """Elements of the graph's weights; what tracing found unused is not among them."""
    model = onnx.load(str(path), load_external_data=False)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return int(sum(np.prod(t.dims, dtype=np.int64) for t in model.graph.initializer if t.data_type in floats))


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
