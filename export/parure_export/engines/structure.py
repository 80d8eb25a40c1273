"""What an engine depends on beside the values of weights: the graph with its weights left out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from parure.errors import ExportError

NEWEST_OPSET = 24  # of the parsers of TensorRT 10.15, 11 and TensorRT-RTX; they take newer ones without a word
_WEIGHTS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def structure_hash(graph: Path) -> str:
    """The same for two graphs of one architecture and precision; names, types and shapes of weights count.

    Whole numbers keep their values: they are shapes and axes, not weights. Raises `ExportError` for an opset that
    TensorRT does not know.
    """
    model = onnx.load(graph, load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset > NEWEST_OPSET:
        raise ExportError(
            f"{graph.name} is of ONNX opset {opset}, TensorRT's parser knows those up to {NEWEST_OPSET}; export the "
            "bundle with this version of parure"
        )
    for tensor in model.graph.initializer:
        if tensor.data_type in _WEIGHTS:
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
