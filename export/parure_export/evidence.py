"""Tensors of a real loop, kept in the bundle: with them anyone can measure parity again, without the checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from parure.errors import BundleError
from parure_export.onnx_export import INPUTS, OUTPUTS
from parure_export.parity import Capture

EVIDENCE = "reports/evidence.safetensors"
_LAYOUT = "layout"
_OUTPUT = "output/"


@dataclass(frozen=True)
class Evidence:
    """One call of one component in PyTorch: inputs and outputs by name, float32, a batch of one."""

    inputs: Mapping[str, NDArray[Any]]
    outputs: Mapping[str, NDArray[Any]]


def save_evidence(captured: Capture, path: Path) -> None:
    """Write one sample of every component's middle call; tensors that several of them share are written once."""
    tensors: dict[str, NDArray[Any]] = {}
    layout: dict[str, dict[str, str]] = {}
    for name in OUTPUTS:
        if not (calls := captured.calls.get(name)):
            continue
        call = calls[len(calls) // 2]
        layout[name] = {}
        outputs = ((f"{_OUTPUT}{key}", value) for key, value in call.outputs(name).items())
        for key, value in (*zip(INPUTS[name], call.inputs, strict=True), *outputs):
            array = np.ascontiguousarray(value[:1].float().numpy())
            digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
            tensors[digest] = array
            layout[name][key] = digest
    save_file(tensors, path, metadata={_LAYOUT: json.dumps(layout)})


def load_evidence(path: Path) -> dict[str, Evidence]:
    """What `save_evidence` wrote, by component. Raises `BundleError`."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            layout = json.loads(tensors.metadata()[_LAYOUT])
            return {
                name: Evidence(
                    {key: tensors.get_tensor(digest) for key, digest in parts.items() if not key.startswith(_OUTPUT)},
                    {
                        key.removeprefix(_OUTPUT): tensors.get_tensor(digest)
                        for key, digest in parts.items()
                        if key.startswith(_OUTPUT)
                    },
                )
                for name, parts in layout.items()
            }
    except (OSError, KeyError, TypeError, ValueError, StopIteration, SafetensorError) as error:
        raise BundleError(
            f"{path} cannot be read as the evidence of parity ({error}); export the bundle again"
        ) from error
