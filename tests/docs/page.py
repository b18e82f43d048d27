"""A page of documentation as something that can be run: its shell blocks, and the outputs that it promises.

Fenced blocks count by their first word and what follows it; all others are for people only.

    ```sh             commands, run in order by one bash for the whole page; each must succeed
    ```sh exits 22    commands of which the last ends with this exit code
    ```sh server      the command that is left running in a terminal of its own, started before all others
    ```json FILE      a file (or ```yaml), written before anything is run
    ```json           what the block before wrote, as JSON; ``"…"`` stands for anything
    ```text           what the block before wrote; … stands for any characters, lines too
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FENCE = re.compile(
    r"^```(?P<kind>sh|json|text|yaml)(?: (?P<word>[^\n]+))?\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
ANYTHING = "…"


@dataclass(frozen=True, slots=True)
class Block:
    """Commands with the exit code and the outputs that the page shows; ``line`` is where they stand in it."""

    line: int
    commands: str
    exits: int = 0
    shown: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Page:
    """What a page tells its reader to do."""

    server: str
    files: dict[str, str]
    blocks: list[Block]


def read(path: Path) -> Page:
    """The page. Raises ValueError where a fence means nothing."""
    text = path.read_text(encoding="utf-8")
    server, files, blocks = "", dict[str, str](), list[Block]()
    for fence in _FENCE.finditer(text):
        line, kind, word, body = (
            text[: fence.start()].count("\n") + 1,
            fence["kind"],
            fence["word"] or "",
            fence["text"],
        )
        if kind != "sh" and word:
            files[word] = body
        elif kind != "sh":
            blocks[-1].shown.append((kind, body))
        elif word == "server":
            server = body.strip()
        elif not word or re.fullmatch(r"exits \d+", word):
            blocks.append(Block(line, body, int(word.removeprefix("exits ") or 0)))
        else:
            raise ValueError(f"{path}:{line} nobody knows what ```sh {word} is")
    return Page(server, files, blocks)


def differences(kind: str, shown: str, written: str) -> list[str]:
    """In what an output differs from what the page shows."""
    if kind == "json":
        return _unlike(json.loads(shown), json.loads(written), "")
    return [] if _fits(shown.strip(), written.strip()) else [f"it wrote\n{written}"]


def _unlike(shown: Any, written: Any, at: str) -> list[str]:
    """An object may hold more than is shown if it shows the key …, a list if its last item is …"""
    if shown == ANYTHING or (isinstance(shown, str) and isinstance(written, str) and _fits(shown, written)):
        return []
    if isinstance(shown, dict) and isinstance(written, dict):
        keys = shown.keys() if ANYTHING in shown else shown.keys() | written.keys()
        missing = [f"{at}/{key} is in one only" for key in keys - {ANYTHING} if (key in shown) != (key in written)]
        both = [
            fault for key in shown.keys() & written.keys() for fault in _unlike(shown[key], written[key], f"{at}/{key}")
        ]
        return missing + both
    if isinstance(shown, list) and isinstance(written, list):
        items = shown[:-1] if shown[-1:] == [ANYTHING] else shown
        if len(written) < len(items) or (items is shown and len(written) > len(items)):
            return [f"{at} has {len(written)} items"]
        return [fault for n, item in enumerate(items) for fault in _unlike(item, written[n], f"{at}/{n}")]
    return [] if shown == written else [f"{at} is {written!r}"]


def _fits(shown: str, written: str) -> bool:
    return re.fullmatch(re.escape(shown).replace(ANYTHING, ".*"), written, re.DOTALL) is not None
