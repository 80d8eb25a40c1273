"""Rewrites the attention that TensorRT has no kernel for. Where it has one, `Attention` stays whole and is fused.

Dedicated kernels take 16 bits and head sizes of 16 to 256 (found by building every size; `Attention` of another
kind is an error in the builder, not a fallback).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir

from parure.errors import ExportError
from parure_export.precision.convert import converted

HEAD_SIZES = range(16, 257, 8)
_SIXTEEN_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def decompose_unfused(source: Path, target: Path) -> Path:
    """`source`, or, if some of its attention has no kernel, a copy at `target` with that attention spelled out."""
    model = ir.load(source)
    nodes = [node for node in model.graph if node.op_type == "Attention" and not _has_kernel(node)]
    if not nodes:
        return source
    for node in nodes:
        _decompose(model.graph, node)
    external = f"{target.name}.data" if source.with_name(f"{source.name}.data").exists() else None
    ir.save(model, target, external_data=external)
    return target


def _has_kernel(node: ir.Node) -> bool:
    query = node.inputs[0]
    assert query is not None
    return query.dtype in _SIXTEEN_BITS and _head_size(query) in HEAD_SIZES


def _head_size(query: ir.Value) -> int:
    if query.shape is None or len(query.shape) != 4 or not isinstance(query.shape[-1], int):
        raise ExportError(f"attention on {query.name} has shape {query.shape}; expected [B, heads, tokens, size]")
    return query.shape[-1]


def _decompose(graph: ir.Graph, node: ir.Node) -> None:
    """softmax(q k^T * scale) v. The scale is shared between q and k, and the softmax is in fp32."""
    query, key, value = node.inputs[:3]
    if query is None or key is None or value is None or any(node.inputs[3:]) or _int(node, "is_causal"):
        raise ExportError(f"attention {node.name} has a mask or a cache, which has no kernel at this size")
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else 1 / math.sqrt(_head_size(query))
    assert query.dtype is not None
    root = ir.Value(name=f"{node.name}/scale", type=ir.TensorType(query.dtype), shape=ir.Shape([]))
    root.const_value = converted(ir.tensor(np.float32(math.sqrt(scale))), query.dtype)
    graph.register_initializer(root)
    steps: list[ir.Node] = []

    def step(op: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        made = ir.node(op, inputs, attributes or None, name=f"{node.name}/{len(steps)}")
        steps.append(made)
        return made.outputs[0]

    scores = step("MatMul", step("Mul", query, root), step("Transpose", step("Mul", key, root), perm=[0, 1, 3, 2]))
    if query.dtype in _SIXTEEN_BITS:
        soft = step("Softmax", step("Cast", scores, to=int(ir.DataType.FLOAT)), axis=-1)
        weights = step("Cast", soft, to=int(query.dtype))
    else:
        weights = step("Softmax", scores, axis=-1)
    step("MatMul", weights, value)
    old = node.outputs[0]
    result = steps[-1].outputs[0]
    result.name, result.type, result.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], steps, [old], [result])


def _int(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0
