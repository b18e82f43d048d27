"""The demo's story: release notes of a repository, drafted by machines and published by a person.

``daemon/cli`` and tests call this. It returns configurations (an ``mcpServers`` object, a WorkflowSpec) and, where
no git history is at hand, makes a small real one; it never starts or runs anything itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon.errors import SetupError

_HERE = Path(__file__).resolve().parents[2]  # where the package `daemon` lies: our servers must be able to import it

_STORY = (
    ("Set up the greenhouse controller", {"controller.py": "SENSORS = ['north', 'south']\n"}),
    ("Read the sensors every minute", {"controller.py": "SENSORS = ['north', 'south']\nPERIOD_S = 60\n"}),
    ("Explain how to wire a sensor", {"docs/wiring.md": "# Wiring\n\nRed is power, black is ground.\n"}),
    ("Add a third sensor", {"controller.py": "SENSORS = ['north', 'south', 'roof']\nPERIOD_S = 60\n"}),
    ("Alert when the roof is hot", {"alerts.py": "def too_hot(celsius):\n    return celsius > 38\n"}),
    ("Test the alert", {"tests/test_alerts.py": "from alerts import too_hot\n\nassert too_hot(40)\n"}),
)


def demo_repository(here: Path, data_dir: Path) -> Path:
    """``here`` if it is a git repository with a history, else a small one made (once) below ``data_dir``."""
    if shutil.which("git") is None:
        raise SetupError("the demo reads a git history and there is no git: install git")
    if _git(here, "rev-parse", "--verify", "--quiet", "HEAD"):
        return here.resolve()
    made = (data_dir / "demo-repository").resolve()
    if not _git(made, "rev-parse", "--verify", "--quiet", "HEAD"):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        _tell_story(made)
    return made


def demo_mcp_servers(repo: Path, out: Path) -> dict[str, Any]:
    """The ``mcpServers`` object of the demo: two reference servers from PyPI and our workbench."""
    python = sys.executable
    return {
        "git": {"command": python, "args": ["-m", "mcp_server_git", "--repository", str(repo)]},
        "time": {"command": python, "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"]},
        "workbench": {
            "command": python,
            "args": ["-m", "daemon.dev.workbench", "--repo", str(repo), "--out", str(out)],
            "env": {"PYTHONPATH": str(_HERE)},
        },
    }


def demo_workflow(agent_id: str, repo: Path, *, seconds: float = 4.0) -> dict[str, Any]:
    """The WorkflowSpec of the demo; the streaming step is paced to take about ``seconds``, however long the history."""
    commits = min(int(_git(repo, "rev-list", "--count", "HEAD") or 1), 20)
    pace_ms = min(int(seconds * 1000 / commits), 2000)
    return {
        "title": "Publish release notes",
        "description": "Reads the history, drafts notes, checks them, and writes the file once a person has agreed.",
        "steps": [
            _step(
                "history", "Read the git log", agent_id, "git__git_log", {"repo_path": str(repo), "max_count": commits}
            ),
            _step("clock", "Ask for the time", agent_id, "time__get_current_time", {"timezone": "UTC"}),
            _step(
                "draft",
                "Draft the notes, commit by commit",
                agent_id,
                "workbench__release_notes",
                {"max_count": commits, "pace_ms": pace_ms},
                timeout_ms=120_000,
            ),
            # It really fails: what to do when upgrading is not in a git history, and the house rules want it told.
            _step("check", "Check the draft", agent_id, "workbench__lint_notes", {}, on_error="continue"),
            _step(
                "publish",
                "Publish the notes, if you agree",
                agent_id,
                "workbench__write_file",
                {"path": "RELEASE_NOTES.md", "draft": "release-notes.md"},
                approval_policy="manual",
            ),
        ],
    }


def _step(
    step_id: str,
    name: str,
    agent_id: str,
    tool_name: str,
    arguments: dict[str, Any],
    *,
    timeout_ms: int = 30_000,
    approval_policy: str = "auto",
    on_error: str = "stop",
) -> dict[str, Any]:
    return {
        "id": step_id,
        "name": name,
        "type": "tool_call",
        "tool_config": {
            "agent_id": agent_id,
            "tool_name": tool_name,
            "arguments": arguments,
            "timeout_ms": timeout_ms,
            "stream": True,
        },
        "approval_policy": approval_policy,
        "on_error": on_error,
    }


def _git(where: Path, *arguments: str) -> str | None:
    """What git says, whatever the user's configuration; None when it failed."""
    own = [
        "user.name=Runwarden demo",
        "user.email=demo@localhost",
        "commit.gpgSign=false",
        f"core.hooksPath={os.devnull}",
    ]
    command = ["git", "-C", str(where), *(part for pair in own for part in ("-c", pair)), *arguments]
    done = subprocess.run(  # noqa: S603 - our own argument list, no shell
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


def _tell_story(made: Path) -> None:
    well = _git(made, "init", "--quiet", "--initial-branch=main") is not None
    for subject, files in _STORY:
        for path, text in files.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            (made / path).write_text(text, encoding="utf-8")
        for command in (("add", "--all"), ("commit", "--quiet", "--message", subject)):
            well = well and _git(made, *command) is not None
    if not well:
        raise SetupError(f"git could not make the demo's repository in {made}: is that directory writable?")
