"""Attention one head after the other: the same numbers, with the scores of one head in memory instead of all."""

from __future__ import annotations

import math

import onnx_ir as ir

LARGE_SCORES = 2**28  # bytes; ONNX Runtime's CPU kernel holds all scores at once


def split_heads(graph: ir.Graph) -> None:
    """Rewrite `Attention` whose scores are large, in place. Only for graphs that are run to be looked at."""
    for node in list(graph):
        if node.op_type == "Attention" and _score_bytes(node) > LARGE_SCORES:
            _split(graph, node)


def _score_bytes(node: ir.Node) -> int:
    """Of one sample, in fp32; 0 where the graph does not tell."""
    query, key = (value.shape if value is not None else None for value in node.inputs[:2])
    if query is None or key is None:
        return 0
    sides = [side for side in (*query[1:-1], key[-2]) if isinstance(side, int)]
    return 4 * math.prod(sides) if len(sides) == 3 else 0


def _split(graph: ir.Graph, node: ir.Node) -> None:
    query = node.inputs[0]
    assert query is not None and query.shape is not None
    heads = int(query.shape[1])  # type: ignore[arg-type]
    splits = [ir.node("Split", [value], {"axis": 1, "num_outputs": heads}, num_outputs=heads) for value in node.inputs]
    each = [
        ir.node("Attention", [split.outputs[head] for split in splits], node.attributes, name=f"{node.name}/{head}")
        for head in range(heads)
    ]
    joined = ir.node("Concat", [one.outputs[0] for one in each], {"axis": 1})
    old, new = node.outputs[0], joined.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [*splits, *each, joined], [old], [new])
