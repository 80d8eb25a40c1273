"""`parure verify` and `parure inspect` on a real bundle, whole and harmed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from parure.bundle import Bundle, sha256_of
from parure.cli import main
from parure.manifest import MANIFEST_NAME
from parure_export.bisect import Parting, first_difference
from parure_export.evidence import EVIDENCE, load_evidence
from parure_export.verify import verify


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def reseal(root: Path, name: str) -> None:
    """Make the manifest vouch for a file that was changed."""
    manifest = json.loads((root / MANIFEST_NAME).read_text())
    manifest["files"][name] = sha256_of(root / name)
    (root / MANIFEST_NAME).write_text(json.dumps(manifest))


def disturb(root: Path, weight: int) -> str:
    """Change a convolution of the mask head a little, and vouch for it; returns the name of what it computes."""
    name = "onnx/mask_head.onnx"
    model = onnx.load(root / name)
    convolution = [node for node in model.graph.node if node.op_type == "Conv"][weight]
    tensor = next(t for t in model.graph.initializer if t.name == convolution.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(model, root / name)
    reseal(root, name)
    return str(convolution.output[0])


def test_a_whole_bundle_passes_every_check(tiny_bundle: Path) -> None:
    checks = list(verify(tiny_bundle))
    assert all(check.passed for check in checks)
    subjects = [check.subject for check in checks]
    for component in Bundle.open(tiny_bundle).manifest.components:
        assert f"graph {component.name}" in subjects and f"parity {component.name}" in subjects
    assert call("verify", tiny_bundle) == 0


def test_an_altered_file_fails(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "onnx" / "unet.onnx").write_bytes(b"")
    assert call("verify", copy) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_graph_that_computes_something_else_fails_though_its_hash_is_right(copy: Path) -> None:
    disturb(copy, 0)
    failed = [check.subject for check in verify(copy) if check.passed is False]
    assert failed == ["parity mask_head"]


def test_bisect_names_the_first_tensor_that_differs(copy: Path, tiny_bundle: Path) -> None:
    tensor = disturb(copy, 1)
    found = list(first_difference(Bundle.open(tiny_bundle), Bundle.open(copy), 1e-3))
    (parting,) = [each for each in found if isinstance(each, Parting)]
    assert (parting.component, parting.tensor, parting.op) == ("mask_head", tensor, "Conv")
    assert len(found) == 6
    assert call("verify", tiny_bundle, "--bisect", copy, "--threshold", 1e-3) == 1
    assert call("verify", tiny_bundle, "--bisect", tiny_bundle) == 0


def test_the_evidence_holds_one_call_of_every_component(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    evidence = load_evidence(tiny_bundle / EVIDENCE)
    for component in bundle.manifest.components:
        kept = evidence[component.name]
        assert {name: a.shape for name, a in kept.inputs.items()} == {t.name: (1, *t.shape) for t in component.inputs}
        assert {name: a.shape for name, a in kept.outputs.items()} == {t.name: (1, *t.shape) for t in component.outputs}


def test_inspect_shows_everything_for_people_and_for_scripts(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("inspect", tiny_bundle) == 0
    page = capsys.readouterr().out
    bundle = Bundle.open(tiny_bundle)
    for word in (bundle.identity, "mask_head", "ddim", "whole loop", "GroupNormalization"):
        assert word in page
    assert call("inspect", tiny_bundle, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    report = content["graphs"]["unet"]
    graph = onnx.load(bundle.graph("unet")).graph
    assert sum(report["nodes"].values()) == len(graph.node) and report["folded"]
    assert report["weights"]["float"] == bundle.manifest.component("unet").parameters


def test_inspect_of_no_bundle_is_wrong_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", tmp_path) == 2
    assert "no bundle at" in capsys.readouterr().err
