"""Reads a bundle: a folder with a manifest. Every file is verified before anything in it is loaded."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from parure.errors import BundleError
from parure.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest, first_fault

_CHUNK = 1 << 20
_MANIFEST_BYTES = 16 << 20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `identity` is the sha256 of its manifest, which names the hash of everything else."""

    root: Path
    manifest: Manifest
    identity: str

    @classmethod
    def open(cls, root: str | Path) -> Bundle:
        """Read and verify the bundle at `root`; raises `BundleError` naming the first thing that is wrong."""
        root = Path(root)
        path = root / MANIFEST_NAME
        if not path.is_file():
            raise BundleError(
                f"no bundle at {root}: {MANIFEST_NAME} is missing; make one with `parure export CHECKPOINT --out {root}`"
            )
        content = path.read_bytes()[:_MANIFEST_BYTES]
        manifest = parse_manifest(content, str(path))
        loaded = (*(c.graph for c in manifest.components), *(s.grid for s in manifest.solvers))
        if unknown := next((name for name in loaded if name not in manifest.files), None):
            raise BundleError(
                f"bundle {root}: the manifest names {unknown!r} and no hash of it; export the bundle again"
            )
        for name, expected in manifest.files.items():
            _verify_file(root, name, expected)
        return cls(root, manifest, identity_of(content))

    def graph(self, component: str) -> Path:
        """The ONNX file of `component`."""
        return self.root / self.manifest.component(component).graph


def identity_of(manifest: bytes) -> str:
    """What tells two bundles apart: the sha256 of the manifest's bytes."""
    return hashlib.sha256(manifest).hexdigest()


def parse_manifest(content: bytes, subject: str) -> Manifest:
    """Manifest from JSON; raises `BundleError` naming `subject` and the first field that is wrong."""
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{subject} is not JSON ({error}); export the bundle again") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{subject} has schema version {version!r}; this parure reads version {SCHEMA_VERSION}; "
            "export the bundle again with this version"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        raise BundleError(f"{subject}: {first_fault(error)}; export the bundle again") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _verify_file(root: Path, name: str, expected: str) -> None:
    """A listed file must be a plain file of its own inside the bundle, with the listed content."""
    pure = PurePosixPath(name)
    path = root / pure
    if pure.is_absolute() or ".." in pure.parts:
        raise BundleError(f"bundle {root}: file name {name!r} leaves the bundle; refuse it and export again")
    parents = [root / p for p in pure.parents if p != PurePosixPath(".")]
    if path.is_symlink() or any(parent.is_symlink() for parent in parents):
        raise BundleError(f"bundle {root}: {name} is a symbolic link; a bundle holds plain files; copy it whole")
    if not path.is_file():
        raise BundleError(f"bundle {root}: {name} is missing; copy the bundle again or export it again")
    if path.stat().st_nlink > 1:
        raise BundleError(f"bundle {root}: {name} is a hard link; a bundle holds files of its own; copy it whole")
    if (actual := sha256_of(path)) != expected:
        raise BundleError(
            f"bundle {root}: {name} has sha256 {actual[:12]}..., the manifest says {expected[:12]}...; "
            "it was altered or truncated; copy the bundle again or export it again"
        )
