"""Folders of parure on the disk: written whole or not at all, and nobody else's ever replaced."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import ModelConfig  # type: ignore[import-untyped]

from parure.errors import InputError
from parure.triton import BUNDLE_PARAMETER
from parure_triton.config import VERSION, render_config
from parure_triton.model import Backend, ModelFolder

CONFIG = "config.pbtxt"


def place_model(folder: ModelFolder, root: Path) -> None:
    """Write configuration and files of one model below the repository `root`."""
    model = root / folder.model.name
    for name, source in folder.files.items():
        target = model / str(VERSION) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    (model / CONFIG).write_text(render_config(folder.model), encoding="utf-8")


def is_ours(model: Path) -> bool:
    """Whether the folder is a model that parure wrote."""
    config = _config(model)
    return config is not None and BUNDLE_PARAMETER in config.parameters


def check_embeddable(repository: Path) -> None:
    """Raises `InputError` where a model of `repository` needs a backend that the embedded server lacks."""
    for folder in sorted(path for path in repository.iterdir() if path.is_dir()):
        config = _config(folder)
        if config is not None and config.backend != Backend.PYTHON.value:
            raise InputError(
                f"{folder.name} in {repository} is for Triton's {config.backend} backend, which the embedded server "
                "lacks; serve it with NVIDIA's container (docs/deploy.md), or write it with --backend python"
            )


def _config(model: Path) -> Any:
    """The model's `ModelConfig`; None where there is none that can be read."""
    try:
        return text_format.Parse((model / CONFIG).read_text(encoding="utf-8"), ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError):
        return None


@contextmanager
def replacing(out: Path, what: str, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A folder beside `out` that takes its place when the block ends well, and vanishes when it does not.

    `ours` judges every entry of an earlier `out`. Raises `InputError` where one is not, or the disk refuses.
    """
    out = out.resolve()
    staging = out.parent / f".{out.name}.{secrets.token_hex(4)}.new"
    replaced = staging.with_suffix(".old")
    try:
        _refuse_foreign(out, what, ours)
        staging.mkdir(parents=True)
        yield staging
        if out.exists():
            out.rename(replaced)
        try:
            staging.rename(out)
        except OSError:
            if replaced.exists():
                replaced.rename(out)
            raise
    except OSError as error:
        raise InputError(
            f"cannot write the {what} {out}: {error.strerror or error} ({error.filename}); "
            "choose a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if out.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def _refuse_foreign(out: Path, what: str, ours: Callable[[Path], bool]) -> None:
    """Only what parure wrote, or an empty folder, is ever replaced."""
    if not out.exists():
        return
    foreign = [out] if not out.is_dir() else sorted(entry for entry in out.iterdir() if not ours(entry))
    if foreign:
        raise InputError(
            f"{foreign[0]} is not part of a {what} that parure wrote, so {out} is left alone; "
            "choose another folder, or remove this one yourself"
        )
