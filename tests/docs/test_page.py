"""What is taken from a page, that a difference is never overlooked, and that no page points to nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from tests.docs.page import Block, differences, read

LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


def test_a_page_is_files_a_server_and_commands_with_what_they_write(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```\nfor people\n```\n```sh server\nmake dev\n```\n```yaml a.yaml\ntitle: A\n```\n"
        "```sh exits 22\nfalse\n```\n```json\n{}\n```\n```text\nno\n```\n"
    )
    told = read(page)
    assert (told.server, told.files) == ("make dev", {"a.yaml": "title: A\n"})
    assert told.blocks == [Block(10, "false\n", 22, [("json", "{}\n"), ("text", "no\n")])]


def test_a_fence_that_means_nothing_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh exit 22\nfalse\n```\n")
    with pytest.raises(ValueError, match=r"page\.md:1 nobody knows what ```sh exit 22 is"):
        read(page)


@pytest.mark.parametrize(
    ("kind", "shown", "written"),
    [
        ("text", "a … c", "a b c\n"),
        ("text", "a\n…\nd", "a\nb\nc\nd"),
        ("json", '{"a": "…", "b": "x…", "…": "…"}', '{"a": [1], "b": "xyz", "c": null}'),
        ("json", '["…"]', "[]"),
        ("json", '[{"a": 1}, "…"]', '[{"a": 1}, 2, 3]'),
    ],
)
def test_what_is_as_shown(kind: str, shown: str, written: str) -> None:
    assert differences(kind, shown, written) == []


@pytest.mark.parametrize(
    ("kind", "shown", "written"),
    [
        ("text", "a … c", "a b d"),
        ("text", "a", "a b"),
        ("json", '{"a": 1}', '{"a": 2}'),
        ("json", '{"a": 1}', '{"a": 1, "b": 2}'),
        ("json", '{"a": 1, "…": "…"}', '{"b": 1}'),
        ("json", '{"a": {"b": "x"}}', '{"a": {"b": "y"}}'),
        ("json", '["a"]', '["a", "b"]'),
        ("json", '["a", "b", "…"]', '["a"]'),
        ("json", "null", "false"),
    ],
)
def test_what_differs_is_told(kind: str, shown: str, written: str) -> None:
    assert differences(kind, shown, written)


def test_every_link_leads_to_a_file() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    missing = [
        f"{page.name}: {link}"
        for page in pages
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert not missing
