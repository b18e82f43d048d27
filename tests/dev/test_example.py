"""The demo's configuration and story; ``test_mcp_agent`` runs it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from daemon.dev.example import demo_repository, demo_workflow
from daemon.errors import SetupError


def subjects(repo: Path) -> list[str]:
    command = ["git", "-C", str(repo), "log", "--format=%s"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_without_a_history_a_small_real_one_is_made_once(tmp_path: Path) -> None:
    here, data = tmp_path / "tarball", tmp_path / "data"
    here.mkdir()
    made = demo_repository(here, data)
    assert made == data / "demo-repository"
    assert subjects(made)[-1] == "Set up the greenhouse controller"
    (made / "mark").touch()
    assert demo_repository(here, data) == made
    assert (made / "mark").exists()


def test_a_repository_with_a_history_is_used_as_it_is(tmp_path: Path) -> None:
    made = demo_repository(tmp_path, tmp_path / "data")
    assert demo_repository(made, tmp_path / "other") == made


def test_without_git_the_demo_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="install git"):
        demo_repository(tmp_path, tmp_path)


def test_the_story_has_a_manual_a_streaming_and_a_failing_step(tmp_path: Path) -> None:
    repo = demo_repository(tmp_path, tmp_path)
    steps = demo_workflow("agent-1", repo)["steps"]
    assert len({step["id"] for step in steps}) == len(steps) == 5
    assert [step["id"] for step in steps if step["approval_policy"] == "manual"] == ["publish"]
    assert [step["id"] for step in steps if step["on_error"] == "continue"] == ["check"]
