"""The catalogue of weather, its tests and its page say the same."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from daemon.dev.weather import CONDITIONS, reference_markdown

ROOT = Path(__file__).resolve().parents[2]
RUNS = [path for path in sorted(Path(__file__).parent.glob("test_*.py")) if path != Path(__file__)]
WIRE = [ROOT / "tests" / "gateway" / "test_weather.py"]


def names_in(paths: list[Path]) -> list[str]:
    """The names of all tests in these files, without ``test_``."""
    trees = [ast.parse(path.read_text()) for path in paths]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    return [node.name.removeprefix("test_") for node in functions if node.name.startswith("test_")]


def condition_of(test: str) -> str | None:
    """The condition that a test is named after: the longest one, as some names begin like others."""
    return max((name for name in CONDITIONS if test.startswith(f"{name}_")), key=len, default=None)


@pytest.mark.parametrize("paths", [RUNS, WIRE], ids=["runs", "wire"])
def test_every_condition_has_its_test(paths: list[Path]) -> None:
    tested = Counter(condition_of(test) for test in names_in(paths))
    assert not CONDITIONS.keys() - tested.keys()


def test_every_test_of_a_run_in_bad_weather_is_named_after_a_condition() -> None:
    assert [test for test in names_in(RUNS) if condition_of(test) is None] == []


def test_the_page_is_the_text_that_make_docs_writes() -> None:
    assert (ROOT / "docs" / "weather.md").read_text() == reference_markdown(), "run `make docs`"
