"""Output that takes no more, not every character, or few columns: it is told or fitted, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.cli.command import ROOT, clean_environment

PROFILES = '[profiles.work]\nurl = "http://h"\ntoken = "t"\n'


def written(home: Path, *words: str, to: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a process of its own, with its output to this file."""
    file = home / "runwarden" / "config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(PROFILES)
    with Path(to).open("w") as output:
        return subprocess.run(
            [sys.executable, "-m", "daemon", *words],
            cwd=ROOT,
            env=clean_environment() | {"XDG_CONFIG_HOME": str(home)} | environment,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )


def test_a_full_disk_is_told_in_a_line(tmp_path: Path) -> None:
    for words in (["profile", "list"], ["profile", "list", "--json"], ["run", "--help"], ["--version"]):
        told = written(tmp_path, *words, to="/dev/full")
        assert told.returncode == 1
        assert len(told.stderr.splitlines()) == 1
        assert "No space left on device" in told.stderr
