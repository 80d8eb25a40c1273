"""Promise 18: nothing that parure reads can run code by being a pickle, even where a manifest vouches for it."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import parure
from parure.bundle import Bundle, sha256_of
from parure.errors import BundleError
from parure_export.evidence import EVIDENCE, load_evidence

ROOT = Path(__file__).parents[2]
FOLDERS = ("runtime/parure", "export/parure_export", "triton_repo/parure_triton", "benchmarks/parure_bench")
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


class Bomb:
    """Pickled, it makes a file of the name when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def went_off(tmp_path: Path) -> Path:
    bomb = tmp_path / "went-off"
    pickle.loads(pickle.dumps(Bomb(bomb)))  # noqa: S301  # it would go off
    assert bomb.exists()
    bomb.unlink()
    return bomb


def arrays_of_objects(path: Path, bomb: Bomb) -> None:
    with path.open("wb") as stream:
        np.savez(stream, evaluations=np.array([bomb], object), timesteps=np.array([bomb], object))


def bare(path: Path, bomb: Bomb) -> None:
    path.write_bytes(pickle.dumps(bomb))


@pytest.mark.parametrize("planted", [arrays_of_objects, bare])
def test_a_pickle_in_place_of_a_solver_is_refused_and_not_run(
    planted: object, tiny_bundle: Path, went_off: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    for solver in manifest["solvers"]:
        planted(copy / solver["grid"], Bomb(went_off))  # type: ignore[operator]
        manifest["files"][solver["grid"]] = sha256_of(copy / solver["grid"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    Bundle.open(copy)  # the hashes hold
    photo = np.zeros((96, 128, 3), np.uint8)
    with pytest.raises(BundleError, match="is not a solver's grid"), parure.open(copy, threads=1) as tryon:
        tryon(photo, photo, (30, 40, 70, 75), steps=1)
    assert not went_off.exists()


def test_a_pickle_in_place_of_the_evidence_is_refused_and_not_run(went_off: Path, tmp_path: Path) -> None:
    bare(tmp_path / Path(EVIDENCE).name, Bomb(went_off))
    with pytest.raises(BundleError, match="cannot be read as the evidence"):
        load_evidence(tmp_path / Path(EVIDENCE).name)
    assert not went_off.exists()


def test_no_module_can_unpickle() -> None:
    """Nothing imports pickle, loads with torch, or lets numpy load objects."""
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in UNPICKLERS, path
            elif isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "torch.load", path
                allowed = [ast.unparse(word.value) for word in node.keywords if word.arg == "allow_pickle"]
                assert allowed in ([], ["False"]), path
