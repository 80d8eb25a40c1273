"""Checkpoint folders: what is wrong is named, component and file; a pickle is never opened."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from parure.cli import main
from parure.errors import CheckpointError
from parure_export.checkpoint import load_checkpoint


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: shutil.rmtree(c), ["is not a folder", "model_index.json"]),
        (lambda c: (c / "model_index.json").unlink(), ["model_index.json is missing"]),
        (lambda c: (c / "model_index.json").write_text("{"), ["model_index.json", "not JSON"]),
        (lambda c: edit(c / "model_index.json", parure={}), ["parure.crop_size"]),
        (lambda c: shutil.rmtree(c / "mask_head"), ["lacks component mask_head", "MaskHead"]),
        (lambda c: (c / "unet" / "config.json").unlink(), ["unet", "config.json is missing"]),
        (lambda c: (c / "vae" / "diffusion_pytorch_model.safetensors").unlink(), ["vae", "safetensors"]),
        (lambda c: truncate(c / "unet" / "diffusion_pytorch_model.safetensors"), ["component unet", "cannot be read"]),
        (lambda c: edit(c / "unet" / "config.json", in_channels=7), ["unet"]),
        (lambda c: edit(c / "mask_head" / "config.json", latent_size=64), ["component mask_head"]),
        (lambda c: shutil.rmtree(c / "scheduler"), ["scheduler_config.json is missing"]),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_named(
    damage: Callable[[Path], object], words: list[str], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    with pytest.raises(SystemExit) as exit_:
        main(["checkpoint", "show", str(copy)])
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    for word in words:
        assert word in said
    assert "Traceback" not in said


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "weights.pt", "model.ckpt", "x.pkl"])
def test_a_pickle_is_refused_and_never_opened(name: str, copy: Path, tmp_path: Path) -> None:
    went_off = tmp_path / "went-off"
    (copy / "unet" / name).write_bytes(pickle.dumps(Bomb(went_off)))
    with pytest.raises(CheckpointError, match="pickle") as caught:
        load_checkpoint(copy)
    assert name in str(caught.value) and not went_off.exists()


def test_show_prints_parameters_flops_and_features(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["checkpoint", "show", "--json", str(tiny_checkpoint)])
    assert exit_.value.code == 0
    shown = json.loads(capsys.readouterr().out)
    assert {c["name"] for c in shown["components"]} >= {"unet", "reference_net", "mask_head"}
    assert all(c["flops"] > 0 and c["parameters"] > 0 for c in shown["components"])
    layers = shown["features"]["layers"]
    assert layers[-1]["offset"] + layers[-1]["tokens"] * layers[-1]["channels"] == sum(
        layer["tokens"] * layer["channels"] for layer in layers
    )


def test_new_refuses_a_folder_that_is_not_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit) as exit_:
        main(["checkpoint", "new", "--geometry", "demo", str(tmp_path)])
    assert exit_.value.code == 2
    assert "not empty" in capsys.readouterr().err
