"""The components -> ONNX graphs in the precision that was asked for, and what shows that they compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from parure.manifest import Component, Precision, TensorSpec
from parure_export.graph_report import GraphReport, report_graph
from parure_export.onnx_export import Call, save_graph, session_inputs, trace_component
from parure_export.parity import Capture, distinct
from parure_export.precision import HALF_PRECISION, Kept, choose, convert, emulate, record_ranges

Say = Callable[[str], None]
EMULATED = "emulated-"


@dataclass(frozen=True)
class Graph:
    """One exported component: what the manifest says of it, and the fp32 graph that parity is measured on.

    `judged` is the exported graph itself, or, for 16 bits, an fp32 graph that rounds as they do; `kept` are the
    nodes that stay in fp32.
    """

    component: Component
    judged: Path
    kept: list[Kept]
    report: GraphReport


def write_graphs(
    modules: dict[str, nn.Module],
    captured: Capture,
    folder: Path,
    precision: Precision,
    max_batch: int,
    say: Say,
) -> dict[str, Graph]:
    """Write `folder`/<component>.onnx of every module, as `write_graph`; empties `modules`, to free their memory."""
    graphs = {}
    for name in list(modules):
        say(f"exporting {name}")
        graphs[name] = write_graph(name, modules.pop(name), captured.calls[name], folder, precision, max_batch)
    return graphs


def write_graph(
    name: str, module: nn.Module, calls: Sequence[Call], folder: Path, precision: Precision, max_batch: int
) -> Graph:
    """Write `folder`/<name>.onnx and, for 16 bits, the graph that parity is measured on beside it."""
    path = folder / f"{name}.onnx"
    traced = trace_component(name, module, calls[0], max_batch)
    del module
    model, kept, component = traced.model, list[Kept](), traced.component
    if precision is not Precision.FP32:
        kept = _lower(model, name, calls, precision)
        inputs, outputs = (tuple(_spec(v) for v in values) for values in (model.graph.inputs, model.graph.outputs))
        component = component.model_copy(update={"inputs": inputs, "outputs": outputs})
    save_graph(model, path)
    del model
    traced.forget_weights()
    report = report_graph(path, traced.nodes)
    if precision is Precision.FP32:
        return Graph(component, path, kept, report)
    judged = folder / f"{EMULATED}{path.name}"  # beside the graph, whose weights it shares
    model = ir.load(path)
    emulate(model, HALF_PRECISION[precision])
    ir.save(model, judged)
    return Graph(component, judged, kept, report)


def _lower(model: ir.Model, name: str, calls: Sequence[Call], precision: Precision) -> list[Kept]:
    """Convert one fp32 graph in place; returns the nodes that were kept."""
    low = HALF_PRECISION[precision]
    taken = {f"{value.name}" for value in model.graph.inputs}
    ranges = record_ranges(model, (session_inputs(name, call, taken) for call in distinct(calls)))
    kept = choose(model.graph, ranges, low)
    nodes = {node.node for node in kept}
    tensors = [*model.graph.inputs, *model.graph.outputs]
    wide = {f"{v.name}" for v in tensors if low is not ir.DataType.FLOAT16 or _stays_wide(v, nodes)}
    convert(model, nodes, low, wide)
    return kept


def _stays_wide(value: ir.Value, kept: set[str]) -> bool:
    """Whether a graph's input or output stays fp32 in fp16: timesteps, and what only fp32 nodes read or write."""
    producer = value.producer()
    if producer is not None:
        return producer.name in kept
    return all(use.node.name in kept for use in value.uses())


def _spec(value: ir.Value) -> TensorSpec:
    names: dict[ir.DataType | None, Any] = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
    assert value.shape is not None
    return TensorSpec(
        name=f"{value.name}",
        dtype=names[value.dtype],
        shape=tuple(int(side) for side in value.shape[1:]),  # type: ignore[arg-type]
    )
