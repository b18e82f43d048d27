"""The failure contract's rows name tests that exist, and no test of the Gateway's weather is missing from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/failure-contract.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| (?!failure|`|---)", line)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split(" | ")[0].strip("| ")[:60])
def test_a_row_says_what_you_see_what_happens_and_what_to_do_and_names_its_test(row: str) -> None:
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    if cells[0].startswith("`paused_reason`"):
        return
    assert len(cells) == 5
    assert all(cells)
    assert re.search(r"`tests/[\w/]+\.py::\w+`", cells[-1])


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_a_named_test_exists(path: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_every_weather_of_the_gateway_is_in_the_contract() -> None:
    told = {name for path, name in NAMED if path.startswith("tests/weather/")}
    assert len(told) > 20
