"""Promise 22 over real servers that sleep: the long form; tests/runtime/batch holds how two endpoints share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from parure_bench.batch_scaling import main


def test_every_figure_is_a_command_that_answers_help() -> None:
    for command in ("scale", "cost", "memory", "affinity", "kill"):
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_endpoints_do_almost_twice_the_work_of_one_and_share_it(tiny_bundle: Path, tmp_path: Path) -> None:
    given = ["--work", tmp_path, "--results", tmp_path, "--bundle", tiny_bundle]
    line = [sys.executable, "-m", "parure_bench.batch_scaling", *map(str, given)]
    subprocess.run([*line, "scale", "--jobs", "160", "--endpoints", "1,2"], check=True, capture_output=True)
    _, two = json.loads((tmp_path / "batch-scale.json").read_text())["runs"]
    assert two["ok"] and two["speedup"] >= 1.9
    assert all(abs(share - 0.5) <= 0.025 for share in two["shares"])
