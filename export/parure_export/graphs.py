"""The six components -> ONNX graphs in the precision that was asked for, and what shows that they compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from torch import nn

from parure.manifest import Component, Precision, TensorSpec
from parure_export.graph_report import GraphReport, report_graph
from parure_export.onnx_export import Call, export_component, session_inputs
from parure_export.parity import Capture
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
    work: Path,
    precision: Precision,
    max_batch: int,
    say: Say,
) -> dict[str, Graph]:
    """Write `folder`/<component>.onnx of every module, as `write_graph`; empties `modules`, to free their memory."""
    graphs = {}
    for name in list(modules):
        say(f"exporting {name}")
        graphs[name] = write_graph(name, modules.pop(name), captured.calls[name], folder, work, precision, max_batch)
    return graphs


def write_graph(
    name: str, module: nn.Module, calls: Sequence[Call], folder: Path, work: Path, precision: Precision, max_batch: int
) -> Graph:
    """Write `folder`/<name>.onnx; `work` is for what is only needed until parity has been measured."""
    path = folder / f"{name}.onnx"
    if precision is Precision.FP32:
        exact = export_component(name, module, calls[0], folder, max_batch)
        return Graph(exact.component, path, [], report_graph(path, exact.traced))
    exact = export_component(name, module, calls[0], work, max_batch)
    del module
    kept, inputs, outputs = _lower(work / path.name, path, name, calls, precision)
    for spent in work.glob(f"{path.name}*"):
        spent.unlink()
    component = exact.component.model_copy(
        update={"graph": f"{folder.name}/{path.name}", "inputs": inputs, "outputs": outputs}
    )
    judged = folder / f"{EMULATED}{path.name}"  # beside the graph, whose weights it shares
    model = ir.load(path)
    emulate(model, HALF_PRECISION[precision])
    ir.save(model, judged)
    return Graph(component, judged, kept, report_graph(path, exact.traced))


def _lower(
    source: Path, target: Path, name: str, calls: Sequence[Call], precision: Precision
) -> tuple[list[Kept], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Convert one fp32 graph; returns what was kept and the tensors that the new graph takes and gives."""
    low = HALF_PRECISION[precision]
    ranges = record_ranges(source, (session_inputs(name, call) for call in calls))
    model = ir.load(source)
    kept = choose(model.graph, ranges, low)
    tensors = [*model.graph.inputs, *model.graph.outputs]
    nodes = {node.node for node in kept}
    wide = {f"{v.name}" for v in tensors if low is not ir.DataType.FLOAT16 or _stays_wide(v, nodes)}
    convert(model, nodes, low, wide)
    ir.save(model, target, external_data=f"{target.name}.data" if _external(source) else None)
    onnx.checker.check_model(str(target), full_check=not _external(source))
    inputs, outputs = ([_spec(v) for v in values] for values in (model.graph.inputs, model.graph.outputs))
    return kept, tuple(inputs), tuple(outputs)


def _stays_wide(value: ir.Value, kept: set[str]) -> bool:
    """Whether a graph's input or output stays fp32 in fp16: timesteps, and what only fp32 nodes read or write."""
    producer = value.producer()
    if producer is not None:
        return producer.name in kept
    return all(use.node.name in kept for use in value.uses())


def _external(graph: Path) -> bool:
    return graph.with_name(f"{graph.name}.data").exists()


def _spec(value: ir.Value) -> TensorSpec:
    names: dict[ir.DataType | None, Any] = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
    assert value.shape is not None
    return TensorSpec(
        name=f"{value.name}",
        dtype=names[value.dtype],
        shape=tuple(int(side) for side in value.shape[1:]),  # type: ignore[arg-type]
    )
