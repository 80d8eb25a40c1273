"""What every tensor of a graph holds on real inputs: its largest magnitude, recorded by ONNX Runtime."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ranges:
    """`largest`: max|x| of every float tensor, weights among them, by value name. `scores`: an upper bound of the
    attention scores |q k^T| * scale of every `Attention` node, by node name; scores are no tensor of the graph."""

    largest: Mapping[str, float]
    scores: Mapping[str, float]


def record_ranges(graph: Path, calls: Iterable[Mapping[str, NDArray[Any]]]) -> Ranges:
    """Run the fp32 `graph` on `calls` with a probe at every float tensor; infinite where a value is not finite.

    The probed graph stands beside `graph` for the time of the runs, since weights may be in a file of their own.
    """
    model = ir.load(graph)
    largest = {
        name: _largest(value.const_value.numpy())
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None
    }
    probes = _add_probes(model.graph)
    with tempfile.NamedTemporaryFile(suffix=".onnx", prefix="probe-", dir=graph.parent) as probed:
        ir.save(model, probed.name)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 3
        session = ort.InferenceSession(probed.name, options, providers=["CPUExecutionProvider"])
    recorded = dict.fromkeys(probes, 0.0)
    for call in calls:
        for probe, seen in zip(probes, session.run(list(probes), dict(call)), strict=True):
            recorded[probe] = max(recorded[probe], _largest(seen))
    queries: dict[str, float] = {}
    keys: dict[str, float] = {}
    for probe, (target, name) in probes.items():
        {"value": largest, "query": queries, "key": keys}[target][name] = recorded[probe]
    scales = {node.name: _scale(node) for node in model.graph if node.op_type == "Attention"}
    return Ranges(largest, {name: queries[name] * keys[name] * scales[name] for name in queries if name is not None})


def _add_probes(graph: ir.Graph) -> dict[str, tuple[str, str]]:
    """Outputs that hold magnitudes: name -> what it measures (`value`, `query`, `key`) and of what."""
    probes: dict[str, tuple[str, str]] = {}

    def probe(value: ir.Value, target: str, name: str, *, rows: bool = False) -> None:
        if rows:  # the longest row: by Cauchy-Schwarz |q . k| <= |q| |k|
            axes = ir.Value(name=f"axes/{target}/{name}", const_value=ir.tensor([-1]))
            graph.register_initializer(axes)
            magnitude = ir.node("ReduceL2", [value, axes], {"keepdims": 0})
        else:
            magnitude = ir.node("Abs", [value])
        top = ir.node("ReduceMax", [magnitude.outputs[0]], {"keepdims": 0})
        output = top.outputs[0]
        output.name = f"probe/{target}/{name}"
        output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
        graph.extend([magnitude, top])
        graph.outputs.append(output)
        probes[output.name] = (target, name)

    nodes = list(graph)
    values = [*graph.inputs, *(output for node in nodes for output in node.outputs)]
    for value in values:
        if value.dtype == ir.DataType.FLOAT and value.name:
            probe(value, "value", value.name)
    for node in nodes:
        if node.op_type == "Attention" and node.name and node.inputs[0] is not None and node.inputs[1] is not None:
            probe(node.inputs[0], "query", node.name, rows=True)
            probe(node.inputs[1], "key", node.name, rows=True)
    return probes


def _scale(node: ir.Node) -> float:
    """The factor on the scores of an `Attention` node: its attribute, or 1 / sqrt(head size)."""
    if "scale" in node.attributes:
        return float(node.attributes["scale"].as_float())
    query = node.inputs[0]
    assert query is not None and query.shape is not None
    return 1 / math.sqrt(int(query.shape[-1]))  # type: ignore[arg-type]


def _largest(values: NDArray[Any]) -> float:
    if values.size == 0:
        return 0.0
    top = float(np.abs(values).max())
    return top if math.isfinite(top) else math.inf
