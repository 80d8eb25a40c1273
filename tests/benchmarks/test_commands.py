from __future__ import annotations

import pytest

from parure.cli import main
from parure.cli.bench import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_measurement_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", name, "--help"])
    assert ended.value.code == 0 and "Usage:" in capsys.readouterr().out
