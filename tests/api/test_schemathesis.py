"""schemathesis against a live node: every check, for a minute. Longer by hand, with the same ``schemathesis.toml``."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from daemon.auth.caller import Role
from daemon.auth.tokens import mint
from tests.api.harness import SECRET, Stack

HERE = Path(__file__).parent
SECONDS = 45
ROLES: tuple[Role, ...] = ("admin", "operator", "approver", "viewer")
"""Whoever lacks one is told so by a 403 before anything else of the request is looked at."""
UNFINISHED = "stream_events"
"""A stream of a run that waits has no end, and schemathesis reads answers to their end."""
ARCHIVED = "use_after_free"
"""This check takes DELETE for the end of a resource; here it archives, and what is archived can be read."""


@pytest.mark.timeout(240)
async def test_schemathesis_finds_nothing(live: Stack, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")]
    token = mint("ann", SECRET, lifetime_s=600, roles=ROLES)
    command += ["run", live.base + "/openapi.json", "--header", f"Authorization: Bearer {token}"]
    command += ["--checks", "all", "--exclude-checks", ARCHIVED, "--exclude-operation-id", UNFINISHED]
    command += ["--seed", "1", "--max-time", str(SECONDS), "--max-examples", "25", "--request-timeout", "20"]
    env = dict(os.environ) | {"PYTHONPATH": str(HERE.parents[1])}  # where its hooks are; it leaves a folder behind
    running = await asyncio.create_subprocess_exec(
        *command, "--no-color", cwd=tmp_path, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await running.communicate()
    assert running.returncode == 0, said.decode()
