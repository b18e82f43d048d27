"""Profiles: kept where only their owner reads them, and what wins over what; and the shells' completion."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from daemon.cli import main

TOKEN = "a.b.c"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "runwarden" / "config.toml"


def says(tmp: Path, *arguments: str, answer: str | None = None, **settings: str) -> Result:
    given = {"URL": None, "TOKEN": None, "PROFILE": None} | {name.upper(): value for name, value in settings.items()}
    environment = {f"RUNWARDEN_{name}": value for name, value in given.items()}
    environment["XDG_CONFIG_HOME"] = str(tmp)
    return CliRunner().invoke(main, arguments, input=answer, env=environment)


def test_profiles_are_set_listed_used_and_removed(tmp_path: Path, file: Path) -> None:
    made = says(tmp_path, "profile", "set", "work", "--url", "https://w.example/", "--token-stdin", answer=TOKEN + "\n")
    assert made.exit_code == 0, made.output
    assert says(tmp_path, "profile", "set", "home", "--url", "http://h.example", "--token", 'q"\\').exit_code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    listed = json.loads(says(tmp_path, "profile", "list", "--json").stdout)["items"]
    assert [(one["name"], one["url"], one["current"]) for one in listed] == [
        ("home", "http://h.example", False),
        ("work", "https://w.example", True),
    ]
    assert TOKEN not in says(tmp_path, "profile", "list").output
    used = json.loads(says(tmp_path, "profile", "use", "home", "--json").stdout)
    assert used == {"name": "home", "current": True, "path": str(file)}
    assert "* home\thttp://h.example\tyes" in says(tmp_path, "profile", "list").stdout
    assert says(tmp_path, "profile", "remove", "home").exit_code == 0
    assert says(tmp_path, "profile", "use", "home").exit_code == 2
    assert says(tmp_path, "profile", "set", "no name").exit_code == 2
    assert says(tmp_path, "profile", "set", "x", "--url", "ftp://x").exit_code == 2


def test_a_damaged_file_is_told_and_not_overwritten(tmp_path: Path, file: Path) -> None:
    file.parent.mkdir()
    file.write_text("current = [")
    refused = says(tmp_path, "profile", "set", "work", "--url", "https://w.example")
    assert refused.exit_code == 2
    assert str(file) in refused.stderr
    assert file.read_text() == "current = ["


def test_options_win_over_the_environment_and_that_over_the_profile(tmp_path: Path) -> None:
    says(tmp_path, "profile", "set", "work", "--url", "http://127.0.0.1:1/profile", "--token", TOKEN)

    def reached(*options: str, **settings: str) -> str:
        told = says(tmp_path, "run", "show", "x", *options, **settings)
        assert told.exit_code in (2, 3), told.output
        return told.stderr

    assert "http://127.0.0.1:1/profile does not answer" in reached()
    assert "http://127.0.0.1:1/env does not answer" in reached(url="http://127.0.0.1:1/env")
    both = reached("--url", "http://127.0.0.1:1/option", url="http://127.0.0.1:1/env")
    assert "http://127.0.0.1:1/option does not answer" in both
    named = reached("--profile", "work", url="http://127.0.0.1:1/env")
    assert "http://127.0.0.1:1/profile does not answer" in named


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(tmp_path: Path, shell: str) -> None:
    told = says(tmp_path, "completion", shell)
    assert told.exit_code == 0, told.output
    assert f"_RUNWARDEN_COMPLETE={shell}_complete" in told.stdout
