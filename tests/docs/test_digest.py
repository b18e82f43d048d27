"""The worked example of docs/approvals.md is what its script says, and what the machine reckons."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from daemon.machine.approval import digest_of, hash_of_schema
from tests.cli.command import ROOT
from tests.docs.page import differences, read

PAGE = read(ROOT / "docs" / "approvals.md")


def test_the_commands_of_the_page_write_what_it_shows(tmp_path: Path) -> None:
    for name, text in PAGE.files.items():
        (tmp_path / name).write_text(text)
    assert len(PAGE.blocks) == 2
    for block in PAGE.blocks:
        typed = subprocess.run(
            ["bash", "-ec", block.commands], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        ((kind, shown),) = block.shown
        assert differences(kind, shown, typed.stdout) == []


def test_the_machine_reckons_the_same() -> None:
    call, schema = json.loads(PAGE.files["call.json"]), json.loads(PAGE.files["schema.json"])
    digest, hashed = (block.shown[0][1].strip() for block in PAGE.blocks)
    assert (digest_of(**call), hash_of_schema(schema)) == (digest, hashed)
    assert call["schema_hash"] == hashed
