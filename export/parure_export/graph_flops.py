"""Floating-point operations of an ONNX graph, counted from its shapes: what is left after pruning and folding."""

from __future__ import annotations

import math
import re

import onnx_ir as ir

from parure.errors import ExportError

_HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention")


def graph_flops(graph: ir.Graph) -> int:
    """Operations of one sample (batch 1), two per multiply-add; only what multiplies matrices counts.

    Raises `ExportError` for a tensor whose shape the graph does not tell.
    """
    return sum(_flops(node) for node in graph if node.op_type in _HEAVY)


def _flops(node: ir.Node) -> int:
    first, second = (_sides(value) for value in node.inputs[:2])
    if node.op_type == "Attention":  # [B, heads, tokens, size]: scores, then their product with the values
        return 2 * math.prod(first[:-1]) * second[-2] * (first[-1] + _sides(node.inputs[2])[-1])
    if node.op_type == "ConvTranspose":
        return 2 * math.prod(first) * math.prod(second[1:])
    terms = math.prod(second[1:]) if node.op_type == "Conv" else first[-1]
    return 2 * math.prod(_sides(node.outputs[0])) * terms


def _sides(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        raise ExportError(f"tensor {value.name if value else '(none)'} has no shape; its cost cannot be counted")
    return [side if isinstance(side, int) else _for_one_sample(str(side)) for side in value.shape]


def _for_one_sample(side: str) -> int:
    """A side that depends on the batch, `batch` or `8*batch`, at batch 1."""
    if not re.search(r"[a-z]", side):
        raise ExportError(f"a side of a tensor is {side!r}; expected a number, or one times the batch")
    return math.prod(int(number) for number in re.findall(r"\d+", re.sub(r"[A-Za-z_]\w*", "1", side)))
