"""The server loop in a repository: the models `tryon` (streaming) and `tryon_unary`, and the files that they read."""

from __future__ import annotations

from pathlib import Path

from parure.bundle import Bundle
from parure.triton import BUNDLE_PARAMETER
from parure.tryon_wire import (
    AT_WORK_PARAMETER,
    INPUTS,
    OUTPUTS,
    TRYON_MODEL,
    UNARY_MODEL,
    WAITING_PARAMETER,
    WireTensor,
)
from parure_triton.model import Model, ModelFolder, ModelTensor
from parure_triton.options import RepositoryOptions

CODE = Path(__file__).parent / "models" / "tryon.py"
DECOUPLED = {TRYON_MODEL: True, UNARY_MODEL: False}


def loop_models(bundle: Bundle, options: RepositoryOptions, files: dict[str, Path]) -> list[ModelFolder]:
    """Both models; `files` are the manifest and the solvers' grids. Each has its bounds and its cache for itself."""
    parameters = {
        BUNDLE_PARAMETER: bundle.identity,
        AT_WORK_PARAMETER: str(options.at_work),
        WAITING_PARAMETER: str(options.waiting),
        "ornament_cache_bytes": str(options.ornament_cache << 20),
        "features_memory": options.features_memory,
    }
    return [
        ModelFolder(
            Model(
                name=name,
                bundle=bundle.identity,
                max_batch=0,
                instances=1,
                inputs=tuple(ModelTensor(t.name, data_type(t), t.dims, optional=t.optional) for t in INPUTS),
                outputs=tuple(ModelTensor(t.name, data_type(t), t.dims) for t in OUTPUTS),
                parameters=parameters,
                decoupled=decoupled,
            ),
            {"model.py": CODE} | files,
        )
        for name, decoupled in DECOUPLED.items()
    ]


def data_type(tensor: WireTensor) -> str:
    """As `config.pbtxt` has it."""
    return "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
