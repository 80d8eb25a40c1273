"""`parure repo` as a user types it, and docs/deploy.md, which says what that does."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from parure.cli import main
from parure.cli.repo import command
from parure_triton.deployment import DeploymentOptions
from parure_triton.options import RepositoryOptions

DOCUMENT = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text()
COMMANDS = [line.partition("#")[0].strip() for line in DOCUMENT.splitlines() if line.startswith("    parure repo ")]


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


@pytest.mark.parametrize("line", COMMANDS)
def test_the_documents_commands_do_what_they_say(
    line: str, sd15_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-bundle").symlink_to(sd15_bundle)
    assert run(*shlex.split(line)[1:]) == 0
    assert "model repository: models" in capsys.readouterr().out
    assert (tmp_path / "models" / "unet" / "config.pbtxt").is_file()
    assert (tmp_path / "deploy" / "chart").is_dir() == ("--deploy" in line)


def test_the_document_tells_of_every_option_with_its_default() -> None:
    table = dict(re.findall(r"^\| `(--[a-z-]+)` \| (.*?) \|", DOCUMENT, re.MULTILINE))
    options = {max(o.opts, key=len): o for o in command.params if isinstance(o, click.Option)}
    assert set(table) == set(options)
    for name, option in options.items():
        if option.show_default and not option.is_flag:
            assert (
                table[name] == f"`{option.default:g}`" if isinstance(option.default, float) else f"`{option.default}`"
            )
    deployment = DeploymentOptions()
    assert (table["--container"], table["--drain"]) == (f"`{deployment.container}`", f"`{deployment.drain}`")


def test_every_option_of_the_code_is_one_of_the_command() -> None:
    offered = {option.name for option in command.params} - {"bundle", "out", "printed", "deploy"}
    assert offered == {*RepositoryOptions.model_fields, *DeploymentOptions.model_fields}
    for option in command.params:
        if isinstance(option, click.Option) and option.show_default:
            assert option.default == RepositoryOptions.model_fields[str(option.name)].default


def test_print_shows_what_would_be_written_and_writes_nothing(
    sd15_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("repo", sd15_bundle, "--print", "--backend", "onnxruntime", "--gpus", "1") == 0
    parts = re.split(r"==> (\w+)/config\.pbtxt <==\n", capsys.readouterr().out)[1:]
    shown = dict(zip(parts[::2], parts[1::2], strict=True))
    assert len(shown) == 9 and list(tmp_path.iterdir()) == []
    assert list(text_format.Parse(shown["unet"], ModelConfig()).instance_group[0].gpus) == [1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a folder with --out, or look at it with --print"),
        (["--out", "m", "--instances", "0"], "instances is 0"),
        (["--out", "m", "--gpus", "a"], "--gpus is 'a'; expected whole numbers from 0 on"),
        (["--out", "m", "--gpus", "0,0"], "gpus are [0, 0]; expected distinct numbers"),
        (["--out", "m", "--preferred", "0"], "--preferred is '0'; expected whole numbers from 1 on"),
        (["--out", "m", "--preferred", "9"], "preferred batch size 9 is more than vae_encoder takes, which is 8"),
        (["--out", "m", "--max-batch", "9"], "max_batch is 9, the bundle's is 8; export it with --max-batch 9"),
        (["--out", "m", "--max-queue", "0"], "max_queue is 0"),
        (["--out", "m", "--queue-delay", "-1"], "queue_delay is -1"),
        (["--out", "m", "--queue-timeout", "nan"], "queue_timeout is nan"),
        (["--out", "m", "--target", "a100"], "backend python runs none; use backend tensorrt"),
        (["--out", "m", "--rate-limit", "1"], "a rate limit counts executions on a GPU; name the GPUs"),
        (["--out", "m", "--backend", "tensorrt"], "say with --target which of them are served"),
        (["--out", "m", "--drain", "5"], "are of a deployment; name its folder with --deploy"),
        (["--out", "m", "--deploy", "d", "--container", "24.05-py3"], "24.05-py3 is older than 26.06"),
        (["--out", "m", "--deploy", "m/d"], "lie in each other"),
        (["--out", "m", "--deploy", "d", "--gpus", "1"], "a container numbers its GPUs from 0"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(
    arguments: list[str], words: str, sd15_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run("repo", sd15_bundle, *arguments) == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
