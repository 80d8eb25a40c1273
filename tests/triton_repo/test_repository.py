"""Bundle -> model repository: generated from the manifest, self-contained, written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from parure.bundle import Bundle, sha256_of
from parure.errors import BundleError, InputError
from parure_triton.repository import write_repository


def config_of(repository: Path, model: str) -> ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def test_each_component_becomes_a_model_with_the_manifests_tensors(bundle: Path, repository: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert sorted(path.name for path in repository.iterdir()) == [
        "manifest", "mask_head", "tryon", "tryon_unary", "unet",
    ]  # fmt: skip
    for component in manifest.components:
        config = config_of(repository, component.name)
        types = {"float32": "TYPE_FP32", "float16": "TYPE_FP16"}
        for specs, tensors in ((component.inputs, config.input), (component.outputs, config.output)):
            assert [(t.name, DataType.Name(t.data_type), tuple(t.dims)) for t in tensors] == [
                (spec.name, types[spec.dtype], spec.shape or (1,)) for spec in specs
            ]
        assert config.max_batch_size == manifest.max_batch
        assert config.HasField("dynamic_batching")


def test_the_repository_holds_the_verified_files_and_the_bundles_identity(bundle: Path, repository: Path) -> None:
    opened = Bundle.open(bundle)
    parameters = {key: value.string_value for key, value in config_of(repository, "unet").parameters.items()}
    assert parameters["bundle"] == opened.identity
    for name in ("unet.onnx", "unet.onnx.data"):
        copied = repository / "unet" / "1" / name
        assert parameters[f"sha256:{name}"] == sha256_of(copied) == opened.manifest.files[f"onnx/{name}"]
        assert not copied.is_symlink() and copied.stat().st_nlink == 1
    assert sha256_of(repository / "manifest" / "1" / "files" / "manifest.json") == opened.identity
    assert str(bundle) not in "".join(path.read_text() for path in repository.rglob("config.pbtxt"))


def test_instances_and_threads_reach_the_configuration(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", instances=2, threads=3)
    config = config_of(tmp_path / "out", "unet")
    assert [group.count for group in config.instance_group] == [2]
    assert config.parameters["threads"].string_value == "3"
    with pytest.raises(InputError, match="instances is 0"):
        write_repository(bundle, tmp_path / "other", instances=0)


def test_an_earlier_repository_is_replaced_whole(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_repository(bundle, out)
    (out / "unet" / "1" / "stale.bin").write_bytes(b"x")
    write_repository(bundle, out)
    assert not (out / "unet" / "1" / "stale.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_parure_did_not_write_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_repository(bundle, out)
    (out / "precious").mkdir()
    with pytest.raises(InputError, match="precious is not part of a model repository"):
        write_repository(bundle, out)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError, match="left alone"):
        write_repository(bundle, tmp_path / "file")
    assert (out / "precious").is_dir() and (tmp_path / "file").read_text() == "precious"


def test_a_folder_that_cannot_be_written_is_a_clear_error(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the model repository"):
        write_repository(bundle, tmp_path / "file" / "out")
    with pytest.raises(InputError, match="cannot write the model repository"):
        write_repository(bundle, Path("/proc/parure/out"))


def test_a_failure_midway_leaves_the_earlier_repository(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write_repository(bundle, out)
    before = sorted(path.relative_to(out) for path in out.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_repository(bundle, out, instances=2)
    assert sorted(path.relative_to(out) for path in out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["../escape", "manifest", "", ".hidden", "a/b"])
def test_component_names_that_are_no_model_names_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    altered = tmp_path / "bundle"
    shutil.copytree(bundle, altered)
    manifest = json.loads((altered / "manifest.json").read_text())
    manifest["components"][0]["name"] = name
    (altered / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="cannot be served under this name"):
        write_repository(altered, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_bf16_bundle_is_refused_since_nothing_could_run_it(bundle: Path, tmp_path: Path) -> None:
    altered = Path(shutil.copytree(bundle, tmp_path / "bf16"))
    manifest = json.loads((altered / "manifest.json").read_text())
    (altered / "manifest.json").write_text(json.dumps(manifest | {"precision": "bf16"}))
    with pytest.raises(InputError, match="is bf16, which ONNX Runtime has no kernels for"):
        write_repository(altered, tmp_path / "models")
    assert not (tmp_path / "models").exists()
