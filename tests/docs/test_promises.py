"""docs/promises.md says of every promise which test holds it: the tests are there, in the form that it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "promises.md"
ROW = re.compile(r"^\| (\d+) \|", re.MULTILINE)
TEST = re.compile(r"(\*soak\* )?\[`(tests/[\w/]+\.py)::(test_\w+)`\]\((\.\./[\w/]+\.py)\)")
RECORD = re.compile(r"\]\((\.\./benchmarks/results/[\w.-]+)\)")


def rows() -> list[str]:
    return [line for line in TABLE.read_text().splitlines() if ROW.match(line)]


def marks(function: ast.FunctionDef) -> list[str]:
    return [ast.unparse(each) for each in function.decorator_list]


@pytest.mark.parametrize("row", rows(), ids=[row.split("|")[1].strip() for row in rows()])
def test_every_test_that_is_named_exists_and_is_linked(row: str) -> None:
    for soak, path, name, link in TEST.findall(row):
        assert link == f"../{path}"
        tree = ast.parse((ROOT / path).read_text())
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert len(found) == 1, f"{path} has no {name}"
        assert bool(soak) == ("pytest.mark.soak" in marks(found[0])), f"{name} runs in another form than the table says"
    assert row.count("::") == len(TEST.findall(row)), "a test is named in another form than `path::name` with a link"
    for record in RECORD.findall(row):
        assert (TABLE.parent / record).is_file()


def test_all_22_promises_have_a_row() -> None:
    assert [int(row.split("|")[1]) for row in rows()] == list(range(1, 23))


def test_every_soak_test_is_in_the_table() -> None:
    """A long form that stands alone is named; one that is a parameter of a test is named with that test."""
    named = {(path, name) for _, path, name, _ in TEST.findall(TABLE.read_text())}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any("pytest.mark.soak" in mark for mark in marks(node)):
                assert (path.relative_to(ROOT).as_posix(), node.name) in named
