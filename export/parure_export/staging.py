"""Folders that are whole or not there at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parure.errors import InputError


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end, and vanishes if anything goes wrong before."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror}; choose another --out") from error
    try:
        stage.chmod(0o755)
        yield stage
        if out.exists():
            retired = stage.with_name(f"{stage.name}-old")
            out.rename(retired)
            stage.rename(out)
            shutil.rmtree(retired)
        else:
            stage.rename(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
