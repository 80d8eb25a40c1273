"""Where two bundles of one model part company: the first tensor, in the order of the graph, that differs too much."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from parure.bundle import Bundle
from parure.errors import InputError
from parure_export.evidence import EVIDENCE, Evidence, load_evidence
from parure_export.parity import relative_error

CHUNK = 64  # tensors that are fetched in one run: all at once would not fit into memory
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Parting:
    """The first tensor beyond the threshold, the node that makes it, and its error in the first bundle's terms."""

    component: str
    tensor: str
    op: str
    error: float
    compared: int


def first_difference(ours: Bundle, other: Bundle, threshold: float) -> Iterator[Parting | str]:
    """Compare component by component on the evidence of `ours`: a `Parting`, or the component's name where all agree.

    Tensors are matched by name, so both bundles must come from one export tool and one architecture. Raises
    `InputError` for bundles that have too little in common.
    """
    if EVIDENCE not in ours.manifest.files:
        raise InputError(f"bundle {ours.root} carries no {EVIDENCE}; export it again")
    for name, evidence in load_evidence(ours.root / EVIDENCE).items():
        names = _shared_tensors(ours.graph(name), other.graph(name))
        if not names:
            raise InputError(f"{name} of {ours.root} and {other.root} share no tensor; are they of one model?")
        yield _compare(name, ours, other, evidence, names, threshold) or name


def _compare(
    name: str, ours: Bundle, other: Bundle, evidence: Evidence, tensors: Sequence[tuple[str, str]], threshold: float
) -> Parting | None:
    for start in range(0, len(tensors), CHUNK):
        part = tensors[start : start + CHUNK]
        wanted = [tensor for tensor, _ in part]
        a, b = (_fetch(bundle, name, evidence, wanted) for bundle in (ours, other))
        for offset, (tensor, op) in enumerate(part):
            error = relative_error(b[tensor], a[tensor])
            if not error <= threshold:
                return Parting(name, tensor, op, error, start + offset + 1)
    return None


def _shared_tensors(first: Path, second: Path) -> list[tuple[str, str]]:
    """Float tensors that both graphs compute under one name, with the op that makes them, in the first's order."""
    there = {value.name for value, _ in _computed(second)}
    return [(f"{value.name}", op) for value, op in _computed(first) if value.name in there]


def _computed(graph: Path) -> Iterator[tuple[ir.Value, str]]:
    for node in ir.load(graph).graph:
        for value in node.outputs:
            if value.dtype in _FLOATS and value.name:
                yield value, node.op_type


def _fetch(bundle: Bundle, name: str, evidence: Evidence, wanted: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The tensors `wanted` of one run, node by node as the graph says."""
    path = bundle.graph(name)
    model = ir.load(path)
    values = {v.name: v for node in model.graph for v in node.outputs}
    outputs = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[tensor] for tensor in wanted if tensor not in outputs)
    with tempfile.TemporaryDirectory(prefix="parure-bisect-") as folder:
        data = path.with_name(f"{path.name}.data")
        if data.exists():
            (Path(folder) / data.name).symlink_to(data.absolute())
        ir.save(model, Path(folder) / path.name)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        session = ort.InferenceSession(str(Path(folder) / path.name), options, providers=["CPUExecutionProvider"])
        component = bundle.manifest.component(name)
        inputs = {t.name: evidence.inputs[t.name].astype(t.dtype) for t in component.inputs}
        found = session.run(list(wanted), inputs)
    return {tensor: np.asarray(value, np.float32) for tensor, value in zip(wanted, found, strict=True)}
