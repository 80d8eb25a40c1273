"""What every tensor of a graph holds on real inputs: its largest magnitude, recorded by ONNX Runtime."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from parure_export.precision.heads import split_heads

INLINE = 4096  # bytes; larger weights are not copied into the graph


@dataclass(frozen=True)
class Ranges:
    """`largest`: max|x| of every float tensor, weights among them, by value name. `scores`: an upper bound of the
    attention scores |q k^T| * scale of every `Attention` node, by node name; scores are no tensor of the graph."""

    largest: Mapping[str, float]
    scores: Mapping[str, float]


def record_ranges(model: ir.Model, calls: Iterable[Mapping[str, NDArray[Any]]]) -> Ranges:
    """Run the fp32 `model` on `calls` with a probe at every float tensor; infinite where a value is not finite."""
    probed = model.clone()
    largest = {
        name: _largest_weight(value.const_value)
        for name, value in probed.graph.initializers.items()
        if value.dtype == ir.DataType.FLOAT and value.const_value is not None
    }
    scales = {node.name: _scale(node) for node in probed.graph if node.op_type == "Attention"}
    probes = _add_probes(probed.graph)
    split_heads(probed.graph)
    recorded = dict.fromkeys(probes, 0.0)
    with _session(probed) as session:
        for call in calls:
            for probe, seen in zip(probes, session.run(list(probes), dict(call)), strict=True):
                recorded[probe] = max(recorded[probe], _largest(seen))
    queries: dict[str, float] = {}
    keys: dict[str, float] = {}
    for probe, (target, name) in probes.items():
        kind = {"value": largest, "query": queries, "key": keys}[target]
        kind[name] = max(kind.get(name, 0.0), recorded[probe])
    return Ranges(largest, {name: queries[name] * keys[name] * scales[name] for name in queries if name is not None})


@contextmanager
def _session(model: ir.Model) -> Iterator[ort.InferenceSession]:
    """A session that uses large weights where they are in memory; `model` is spent.

    The graph names a file for them, of the right size and without content, which is never read.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # as written: a tensor is probed, then freed
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    arrays, length = [], 0
    with tempfile.TemporaryDirectory(prefix="parure-") as folder:
        for name, value in model.graph.initializers.items():
            weight = value.const_value
            assert weight is not None
            array = weight.numpy()
            if array.nbytes <= INLINE:
                value.const_value = ir.tensor(array)
                continue
            arrays.append(ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, int(weight.dtype)))
            options.add_initializer(name, arrays[-1])
            value.const_value = ir.ExternalTensor(
                "weights", length, array.nbytes, weight.dtype, shape=ir.Shape(array.shape), name=name, base_dir=folder
            )
            length += array.nbytes
        with (Path(folder) / "weights").open("wb") as weights:
            weights.truncate(length)
        (Path(folder) / "graph.onnx").write_bytes(ir.to_proto(model).SerializeToString())
        session = ort.InferenceSession(str(Path(folder) / "graph.onnx"), options, providers=["CPUExecutionProvider"])
    yield session
    del arrays


def _add_probes(graph: ir.Graph) -> dict[str, tuple[str, str]]:
    """Outputs that hold magnitudes: name -> what it measures (`value`, `query`, `key`) and of what.

    Every probe stands right behind the node whose tensor it reads, so that a large graph's tensors need not be kept.
    """
    probes: dict[str, tuple[str, str]] = {}

    def probe(value: ir.Value, target: str, name: str) -> None:
        if target == "value":
            steps = [ir.node(op, [value], {"keepdims": 0}) for op in ("ReduceMax", "ReduceMin")]
            ends = steps
        else:  # the longest row: by Cauchy-Schwarz |q . k| <= |q| |k|
            axes = ir.Value(name=f"axes/{target}/{name}", const_value=ir.tensor([-1]))
            graph.register_initializer(axes)
            rows = ir.node("ReduceL2", [value, axes], {"keepdims": 0})
            ends = [ir.node("ReduceMax", [rows.outputs[0]], {"keepdims": 0})]
            steps = [rows, *ends]
        producer = value.producer()
        if producer is None:
            graph.insert_before(graph.node(0), steps)
        else:
            graph.insert_after(producer, steps)
        for index, end in enumerate(ends):
            output = end.outputs[0]
            output.name = f"probe/{target}/{index}/{name}"
            output.type, output.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            graph.outputs.append(output)
            probes[output.name] = (target, name)

    nodes = list(graph)
    values = [*graph.inputs, *(output for node in nodes for output in node.outputs)]
    for value in values:
        if value.dtype == ir.DataType.FLOAT and value.name:
            probe(value, "value", value.name)
    for node in nodes:
        if node.op_type == "Attention" and node.name and node.inputs[0] is not None and node.inputs[1] is not None:
            probe(node.inputs[0], "query", node.name)
            probe(node.inputs[1], "key", node.name)
    return probes


def _scale(node: ir.Node) -> float:
    """The factor on the scores of an `Attention` node: its attribute, or 1 / sqrt(head size)."""
    if "scale" in node.attributes:
        return float(node.attributes["scale"].as_float())
    query = node.inputs[0]
    assert query is not None and query.shape is not None
    return 1 / math.sqrt(int(query.shape[-1]))  # type: ignore[arg-type]


def _largest_weight(weight: ir.TensorProtocol) -> float:
    """As `_largest`; a weight in a file of its own is let go of again."""
    top = _largest(weight.numpy())
    if isinstance(weight, ir.ExternalTensor):
        weight.release()
    return top


def _largest(values: NDArray[Any]) -> float:
    if values.size == 0:
        return 0.0
    top = max(float(values.max()), -float(values.min()))  # NaN is passed on by both
    return top if math.isfinite(top) else math.inf
