"""The numbers of 16-bit arithmetic on a runtime that has no kernels for it: fp32, rounded after every node."""

from __future__ import annotations

import onnx_ir as ir

from parure_export.precision.convert import FLOAT, cast_node, converted
from parure_export.precision.heads import split_heads


def emulate(model: ir.Model, low: ir.DataType) -> None:
    """Make a converted `model` compute in fp32, in place: whatever was `low` is rounded to `low` once it is made.

    Sums inside a node are then in fp32, as they are in tensor cores. Weights stay as they are stored and are
    widened by the graph, so that both graphs can share one file of them. Inputs and outputs become fp32.
    """
    graph = model.graph
    nodes = list(graph)
    for value in list(graph.initializers.values()):
        if value.dtype == low:
            _insert(graph, value, [cast_node(value, FLOAT, f"{value.name}.wide")])
    for value in graph.inputs:
        if value.dtype == low:
            value.dtype = FLOAT
            _insert(graph, value, _rounding(value, low))
    for node in nodes:
        for output in node.outputs:
            if output.dtype != low:
                continue
            if node.op_type == "Cast":  # it rounds already
                _insert(graph, output, [cast_node(output, FLOAT, f"{output.name}.wide")])
                continue
            if node.op_type in ("Constant", "ConstantOfShape"):
                node.attributes["value"] = ir.AttrTensor(
                    "value", converted(node.attributes["value"].as_tensor(), FLOAT)
                )
            output.dtype = FLOAT
            _insert(graph, output, _rounding(output, low))
    split_heads(graph)


def _rounding(value: ir.Value, low: ir.DataType) -> list[ir.Node]:
    narrow = cast_node(value, low, f"{value.name}.narrow")
    return [narrow, cast_node(narrow.outputs[0], FLOAT, f"{value.name}.rounded")]


def _insert(graph: ir.Graph, value: ir.Value, chain: list[ir.Node]) -> None:
    """Put `chain`, which begins at `value`, between `value` and all who read it; a graph's output keeps its name."""
    readers = [use for use in value.uses() if use.node is not chain[0]]
    result = chain[-1].outputs[0]
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph.node(0), chain)
    else:
        graph.insert_after(producer, chain)
    for reader in readers:
        reader.node.replace_input_with(reader.idx, result)
    for index, output in enumerate(graph.outputs):
        if output is value:
            value.name, result.name = f"{value.name}.exact", value.name
            graph.outputs[index] = result
