"""Rewrites an fp32 graph into a strongly typed one of mixed precision: what a type is, the graph itself says."""

from __future__ import annotations

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir

from parure.errors import ExportError
from parure_export.precision.policy import INSIDE_FP32

FLOAT = ir.DataType.FLOAT
_NUMPY = {ir.DataType.FLOAT: np.float32, ir.DataType.FLOAT16: np.float16, ir.DataType.BFLOAT16: ml_dtypes.bfloat16}
_ALWAYS_FP32 = {"Resize": (1, 2)}  # roi and scales are parameters, not data


def convert(model: ir.Model, kept: Collection[str], low: ir.DataType, wide: Collection[str]) -> None:
    """Turn `model` into a graph whose nodes run in `low`, except those named in `kept`, in place.

    `wide` names the graph's inputs and outputs that stay fp32. Weights are converted when the model is saved,
    one at a time. Raises `ExportError` for graphs with subgraphs or functions.
    """
    if model.functions or any(True for _ in model.graph.subgraphs()):
        raise ExportError("the graph has functions or subgraphs, which cannot be converted; export it in fp32")
    _Conversion(model.graph, frozenset(kept), low, frozenset(wide)).run()


class _Conversion:
    def __init__(self, graph: ir.Graph, kept: frozenset[str], low: ir.DataType, wide: frozenset[str]) -> None:
        self.graph = graph
        self.kept = kept
        self.low = low
        self.wide = wide
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.weights: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        floats = {v for node in self.graph for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == FLOAT}
        for value in self.graph.inputs:
            if value in floats and value.name not in self.wide:
                value.dtype = self.low
        for node in list(self.graph):
            self._convert_node(node, floats)
        for index, value in enumerate(list(self.graph.outputs)):
            if value in floats:
                self._convert_output(index, value)
        self._drop_unused_weights()

    def _convert_node(self, node: ir.Node, floats: set[ir.Value]) -> None:
        wanted = FLOAT if node.name in self.kept else self.low
        for index, value in enumerate(node.inputs):
            if value is None or value not in floats or index in _ALWAYS_FP32.get(node.op_type, ()):
                continue
            if value.const_value is not None and value.is_initializer():
                node.replace_input_with(index, self._weight(value, wanted))
            elif value.dtype != wanted:
                node.replace_input_with(index, self._cast(value, wanted, node))
        for value in node.outputs:
            if value in floats:
                value.dtype = wanted
        if node.op_type == "Cast" and node.outputs[0] in floats:
            node.attributes["to"] = ir.AttrInt64("to", int(wanted))
        elif node.op_type in ("Constant", "ConstantOfShape") and node.outputs[0] in floats:
            attribute = node.attributes["value"]
            node.attributes["value"] = ir.AttrTensor("value", converted(attribute.as_tensor(), wanted))
        if node.op_type in INSIDE_FP32 and wanted != FLOAT:
            attribute_name = INSIDE_FP32[node.op_type]
            node.attributes[attribute_name] = ir.AttrInt64(attribute_name, int(FLOAT))

    def _cast(self, value: ir.Value, wanted: ir.DataType, before: ir.Node) -> ir.Value:
        """`value` as `wanted`, by one Cast for all that want it."""
        key = (value, wanted)
        if key not in self.casts:
            node = cast_node(value, wanted, f"{value.name}.{wanted.name.lower()}")
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph.node(0), node)
            else:
                self.graph.insert_after(producer, node)
            self.casts[key] = node.outputs[0]
        return self.casts[key]

    def _weight(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """The weight as `wanted`; under its own name in the first type that is asked for."""
        key = (value, wanted)
        if key not in self.weights:
            assert value.const_value is not None
            taken = any(original is value for original, _ in self.weights)
            name = f"{value.name}.{wanted.name.lower()}" if taken else f"{value.name}"
            tensor = converted(value.const_value, wanted, name)
            twin = ir.Value(name=name, shape=value.shape, type=ir.TensorType(wanted), const_value=tensor)
            self.weights[key] = twin
        return self.weights[key]

    def _convert_output(self, index: int, value: ir.Value) -> None:
        wanted = FLOAT if value.name in self.wide else self.low
        if value.dtype == wanted:
            return
        name = value.name
        value.name = f"{name}.{value.dtype.name.lower()}" if value.dtype else f"{name}.other"
        node = cast_node(value, wanted, f"{name}")
        self.graph.append(node)
        self.graph.outputs[index] = node.outputs[0]

    def _drop_unused_weights(self) -> None:
        """Put the converted weights in the place of the originals."""
        for name, value in list(self.graph.initializers.items()):
            if any(original is value for original, _ in self.weights):
                del self.graph.initializers[name]
        for twin in self.weights.values():
            self.graph.register_initializer(twin)


def cast_node(value: ir.Value, wanted: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"cast/{name}")
    output = node.outputs[0]
    output.name, output.shape, output.type = name, value.shape, ir.TensorType(wanted)
    return node


def converted(tensor: ir.TensorProtocol | None, wanted: ir.DataType, name: str | None = None) -> ir.TensorProtocol:
    assert tensor is not None
    if tensor.dtype == wanted:
        return tensor
    source = tensor
    return ir.LazyTensor(
        lambda: ir.Tensor(source.numpy().astype(_NUMPY[wanted]), dtype=wanted, name=name),
        dtype=wanted,
        shape=ir.Shape(source.shape),  # type: ignore[arg-type]
        name=name,
    )
