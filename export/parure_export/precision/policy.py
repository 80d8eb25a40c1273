"""Which nodes stay in fp32: those whose numbers come near the type's limit, and those that accumulate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from parure_export.precision.ranges import Ranges

Reason = Literal["range", "accumulates", "time embedding"]

HALF_PRECISION: Mapping[str, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LIMITS = {ir.DataType.FLOAT16: 65504.0, ir.DataType.BFLOAT16: 3.38e38}
MARGIN = 8.0  # how far from the limit a recorded range must stay: other inputs may reach farther

# Nodes that sum many numbers and offer no other way to do so in fp32.
ACCUMULATING = frozenset({
    "InstanceNormalization", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax",
})  # fmt: skip
# These take 16 bits in and out and compute their statistics in the type that an attribute names: kernels stay fused.
# `Attention` has such an attribute for its softmax too, which TensorRT's parser refuses; its kernels sum in fp32.
INSIDE_FP32 = {"GroupNormalization": "stash_type", "LayerNormalization": "stash_type"}
_PROJECTIONS = frozenset({"Gemm", "MatMul", "Conv"})


@dataclass(frozen=True)
class Kept:
    """One node that stays in fp32, why, and the largest magnitude that was seen at it."""

    node: str
    op: str
    reason: Reason
    largest: float


def choose(graph: ir.Graph, ranges: Ranges, low: ir.DataType, margin: float = MARGIN) -> list[Kept]:
    """The nodes of the fp32 `graph` that stay in fp32 when the others become `low`, in the order of the graph."""
    limit = LIMITS[low] / margin
    timed = _time_embedding(graph)
    kept = []
    for node in graph:
        floats = [v for v in (*node.inputs, *node.outputs) if v is not None and v.dtype == ir.DataType.FLOAT]
        if not floats or node.name is None:
            continue
        seen = max(ranges.largest.get(v.name or "", 0.0) for v in floats)
        seen = max(seen, ranges.scores.get(node.name, 0.0))
        reason: Reason | None = None
        if seen > limit:
            reason = "range"
        elif node.op_type in ACCUMULATING:
            reason = "accumulates"
        elif node in timed:
            reason = "time embedding"
        if reason:
            kept.append(Kept(node.name, node.op_type, reason, seen))
    return kept


def _time_embedding(graph: ir.Graph) -> set[ir.Node]:
    """What is computed from `timestep` alone, up to the first projection: sines of numbers up to 1000."""
    derived = {value for value in graph.inputs if value.name == "timestep"}
    nodes = set()
    for node in graph:
        sources = [v for v in node.inputs if v is not None and v.const_value is None]
        if node.op_type not in _PROJECTIONS and sources and all(v in derived for v in sources):
            nodes.add(node)
            derived.update(node.outputs)
    return nodes
