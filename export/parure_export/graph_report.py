"""What a graph is made of: nodes by type, weights by type, and what was folded away since it was traced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from parure.manifest import Frozen
from parure_export.graph_flops import graph_flops


class GraphReport(Frozen):
    """`nodes` by operator; `flops` of one sample; `weights` elements by type; `bytes` of all weights; `folded` nodes
    by operator that tracing gave and simplification removed (constants, shape arithmetic, duplicates)."""

    nodes: dict[str, int]
    flops: int
    weights: dict[str, int]
    bytes: int
    folded: dict[str, int]


def report_graph(path: Path, traced: Mapping[str, int]) -> GraphReport:
    """The report of the graph at `path`; `traced` counts its nodes before it was simplified."""
    graph = ir.load(path).graph
    nodes = Counter(node.op_type for node in graph)
    weights: Counter[str] = Counter()
    size = 0
    for value in graph.initializers.values():
        if value.const_value is not None:
            weights[value.const_value.dtype.name.lower()] += value.const_value.size
            size += value.const_value.nbytes
    folded = Counter(traced)
    folded.subtract(nodes)
    return GraphReport(
        nodes=dict(nodes.most_common()),
        flops=graph_flops(graph),
        weights=dict(weights.most_common()),
        bytes=size,
        folded={op: count for op, count in folded.most_common() if count > 0},
    )
