"""The numbers of 16-bit arithmetic on a runtime that has no kernels for it: fp32, rounded around every node."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from parure_export.precision.convert import FLOAT, cast_node, converted


def emulate(model: ir.Model, kept: Collection[str], low: ir.DataType) -> None:
    """Make the fp32 `model` compute, in place, what `convert` would make of it, with fp32 tensors throughout.

    A node that is not `kept` reads and writes numbers rounded to `low`, weights included; sums inside it stay
    fp32, as they do in tensor cores. The inputs and outputs of the graph are fp32.
    """
    graph = model.graph
    rounded: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.name in kept:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != FLOAT or value in rounded.values():
                continue
            if value not in rounded:
                rounded[value] = (
                    _rounded_weight(graph, value, low) if value.const_value else _rounded(graph, value, low)
                )
            node.replace_input_with(index, rounded[value])
        for output in node.outputs:
            if output.dtype == FLOAT:
                uses = [(use.node, use.idx) for use in output.uses()]
                rounded[output] = _rounded(graph, output, low)
                for user, index in uses:
                    user.replace_input_with(index, rounded[output])
                for index, result in enumerate(graph.outputs):
                    if result is output:
                        _swap_names(output, rounded[output])
                        graph.outputs[index] = rounded[output]


def _rounded(graph: ir.Graph, value: ir.Value, low: ir.DataType) -> ir.Value:
    narrow = cast_node(value, low, f"{value.name}.narrow")
    wide = cast_node(narrow.outputs[0], FLOAT, f"{value.name}.rounded")
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph.node(0), [narrow, wide])
    else:
        graph.insert_after(producer, [narrow, wide])
    return wide.outputs[0]


def _rounded_weight(graph: ir.Graph, value: ir.Value, low: ir.DataType) -> ir.Value:
    assert value.const_value is not None
    name = f"{value.name}.rounded"
    tensor = converted(converted(value.const_value, low), FLOAT, name)
    twin = ir.Value(name=name, shape=value.shape, type=ir.TensorType(FLOAT), const_value=tensor)
    graph.register_initializer(twin)
    return twin


def _swap_names(output: ir.Value, replacement: ir.Value) -> None:
    name = output.name
    output.name = f"{name}.exact"
    replacement.name = name
