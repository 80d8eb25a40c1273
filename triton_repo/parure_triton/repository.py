"""Bundle -> Triton model repository: a model per component, and `manifest`, which describes them.

    OUT/<component>/config.pbtxt, 1/<graph and its external data, or plans>, 1/model.py (python backend)
    OUT/manifest/config.pbtxt, 1/model.py, 1/files/manifest.json, 1/files/<solver grids>

The repository is self-contained and may be moved or copied to another host.
"""

from __future__ import annotations

from pathlib import Path

from parure.bundle import Bundle
from parure_triton.components import repository_models
from parure_triton.model import ModelFolder
from parure_triton.options import RepositoryOptions
from parure_triton.placing import is_ours, place_model, replacing


def write_repository(
    bundle: Path,
    out: Path,
    *,
    instances: int | None = None,
    threads: int | None = None,
    options: RepositoryOptions | None = None,
) -> list[ModelFolder]:
    """Write the model repository of the bundle at `bundle` to `out`, whole or not at all; returns what is in it.

    `instances` and `threads`, where given, replace those of `options`. An earlier repository of parure at `out` is
    replaced. Raises `BundleError` for a bundle that fails verification, `InputError` for options that the bundle
    cannot meet, and where `out` holds anything else or cannot be written.
    """
    own = {name: value for name, value in (("instances", instances), ("threads", threads)) if value is not None}
    chosen = RepositoryOptions.of(**dict(options or RepositoryOptions()) | own)
    models = repository_models(Bundle.open(bundle), chosen)
    with replacing(out, "model repository", is_ours) as staging:
        for model in models:
            place_model(model, staging)
    return models
