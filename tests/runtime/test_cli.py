"""The command line: help for everything, exit codes, and imports that stay light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parure.cli import COMMANDS, main

HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "tensorrt", "skimage", "scipy")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "parure", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments", [[], *([name] for name in COMMANDS), ["checkpoint", "new"], ["checkpoint", "show"]]
)
def test_every_command_answers_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--help"])
    assert exit_.value.code == 0
    assert "Usage:" in capsys.readouterr().out


@pytest.mark.parametrize("statement", ["import parure", *(f"import {module}" for module, _ in COMMANDS.values())])
def test_runtime_and_every_command_import_without_heavy_libraries(statement: str) -> None:
    code = f"{statement}; import sys; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("polish")
    assert done.returncode == 2
    assert "polish" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_option_is_a_usage_error() -> None:
    done = run("run", "somewhere")
    assert done.returncode == 2
    assert "--photo" in done.stderr


def test_a_missing_bundle_is_named_with_what_to_do(tmp_path: Path) -> None:
    done = run(
        "run", str(tmp_path), "--photo", "p.png", "--ornament", "o.png", "--box", "0,0,9,9", "--out", str(tmp_path)
    )
    assert done.returncode == 2
    assert "manifest.json is missing" in done.stderr and "parure export" in done.stderr


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", ""])
def test_a_box_that_is_not_four_numbers_is_refused(box: str, tmp_path: Path) -> None:
    done = run("run", str(tmp_path), "--photo", "p.png", "--ornament", "o.png", "--box", box, "--out", str(tmp_path))
    assert done.returncode == 2
    assert "box" in done.stderr and "Traceback" not in done.stderr


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "below")
    done = run("run", str(tmp_path), "--photo", "p.png", "--ornament", "o.png", "--box", "0,0,9,9", "--out", out)
    assert done.returncode == 2
    assert out in done.stderr and "--out" in done.stderr
