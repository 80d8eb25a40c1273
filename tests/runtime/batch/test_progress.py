"""What is said meanwhile, and the page afterwards."""

from __future__ import annotations

import re
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from parure.batch.batch import Plan, run_batch


def spoken(pictures: Path, helpers: SimpleNamespace, *, terminal: bool) -> str:
    servers = helpers.Servers(
        one=helpers.FakeServer(lambda s, a: time.sleep(0.02)), two=helpers.FakeServer(alive=False)
    )
    jobs = helpers.write_jobs(pictures, [helpers.row(i % 10, seed=i) for i in range(60)] + ["junk"])
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=160)
    plan = Plan(str(jobs), str(pictures / "out"), tuple(servers.by_url))
    run_batch(plan, connect=servers.connect, check=servers.check, live=lambda url: True, console=console)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_a_terminal_shows_counts_rate_time_left_and_every_endpoint(pictures: Path, helpers: SimpleNamespace) -> None:
    said = spoken(pictures, helpers, terminal=True)
    assert re.search(r"\d+ of 61: \d+ done, 1 not, \d+\.\d+ a second, \d+ s left", said)
    assert re.search(r"grpc://one:1 +\d of 2 +\d+ .*open", said) and re.search(
        r"grpc://two:1 .*out .*(reached|answer)", said
    )


def test_a_log_gets_a_line_now_and_then(
    pictures: Path, helpers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parure.batch.progress._LINE_SECONDS", 0.1)
    lines = spoken(pictures, helpers, terminal=False).splitlines()
    assert 1 <= len(lines) <= 20 and all(re.match(r"\d+ of 61: \d+ done", line) for line in lines)


def test_the_page_shows_a_sample_and_what_was_not_done_and_escapes_what_it_quotes(
    pictures: Path, helpers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parure.batch.batch.page.Gallery.__init__.__defaults__", (5,))
    rows = [helpers.row(i % 10, seed=i, id=f"name-{i}") for i in range(20)] + [helpers.row("<b>bold</b>")]
    servers = helpers.Servers(one=helpers.FakeServer())
    servers.run(helpers.write_jobs(pictures, rows), pictures / "out")
    page = (pictures / "out" / "index.html").read_text()
    assert page.count("<img") == 5 and "5 of 20 pictures" in page and "Not done: 1 of 1" in page
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page
    for link in re.findall(r'href="([^"]+)"', page):
        assert (pictures / "out" / link).is_file()
