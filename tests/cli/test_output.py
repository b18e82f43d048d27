"""Output that takes no more, not every character, or few columns: it is told or fitted, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from daemon.cli import show
from daemon.cli.exits import Commands
from daemon.cli.watch import _View
from tests.cli.command import ROOT, clean_environment

PROFILES = '[profiles.work]\nurl = "http://h"\ntoken = "t"\n'


def written(
    home: Path, *words: str, to: Path, profiles: str = PROFILES, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command as a process of its own, with its output to this file."""
    file = home / "runwarden" / "config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(profiles, encoding="utf-8")
    with to.open("w") as output:
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
        told = written(tmp_path, *words, to=Path("/dev/full"))
        assert told.returncode == 1
        assert len(told.stderr.splitlines()) == 1
        assert "No space left on device" in told.stderr


@pytest.mark.parametrize(("value", "told"), [(1, "1"), (0, "0"), (2, "2"), (True, "yes"), (False, "no"), (None, "")])
def test_a_number_is_told_as_one(value: object, told: str) -> None:
    """To Python 1 is True: the first version of a workflow was listed as "yes"."""
    assert show.plain(value) == told


def test_what_an_encoding_has_not_is_escaped(tmp_path: Path) -> None:
    output = tmp_path / "output"
    url = "http://bücher.😀"

    def listed(*words: str) -> str:
        profiles = PROFILES.replace("http://h", url)
        told = written(tmp_path, "profile", "list", *words, to=output, profiles=profiles, PYTHONIOENCODING="latin-1")
        assert (told.returncode, told.stderr) == (0, "")
        return output.read_text(encoding="latin-1")

    assert r"http://bücher.\U0001f600" in listed()
    assert json.loads(listed("--json"))["items"][0]["url"] == url


def test_a_run_is_watched_in_ascii_whatever_its_title() -> None:
    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def watch() -> None:
        _View({"workflow_snapshot": {"title": "Café 😀", "steps": []}, "run_id": "r"}, as_json=False)

    told = CliRunner(charset="ascii").invoke(group, ["watch"])
    assert (told.exit_code, told.stdout) == (0, "Caf\\xe9 \\U0001f600  (r)\n")


class _Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 57, 100])
def test_a_list_keeps_every_cell_at_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"run": "01990000-0000-7000-8000-000000000001", "title": "Tidy up", "status": "completed", "step": "2/3"}
    out = _Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    show.table([row, row], {key: key for key in row}, none="")
    for cell in row.values():
        assert out.getvalue().count(cell) == 2
