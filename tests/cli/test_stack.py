"""The stack that ``dev`` and ``demo`` stand on: whatever breaks its start, nothing of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path

import aiohttp
import psutil
import pytest

from daemon.dev.stack import DevStack
from daemon.errors import SetupError
from tests.patience import eventually

SLEEPER = {"command": sys.executable, "args": ["-c", "import sys; sys.stdin.read()"]}  # starts, and never says a word


def over(home: Path) -> list[str]:
    """The names of the processes that run over a directory: they name it in their arguments, or stand in it."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if str(home) in " ".join(process.cmdline()) or process.cwd().startswith(str(home)):
                found.append(process.name())
    return found


async def test_a_start_that_fails_at_the_last_step_ends_all_that_was_started(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(SetupError, match=f"Cannot listen on 127.0.0.1:{port}"):
            await DevStack(home, {}, port=port).__aenter__()
    assert (home / "postgres" / "cluster" / "PG_VERSION").exists()
    assert not over(home)


async def test_a_start_that_is_cancelled_ends_all_that_was_started(home: Path) -> None:
    before = set(psutil.Process().children())
    start = asyncio.create_task(DevStack(home, {"sleeper": SLEEPER | {"cwd": str(home)}}, port=0).__aenter__())
    await eventually(lambda: "postgres" in over(home) and any(name.startswith("python") for name in over(home)))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not over(home)
    assert set(psutil.Process().children()) <= before


async def test_two_stacks_never_share_a_directory(home: Path) -> None:
    async with DevStack(home, {}, port=0) as stack:
        with pytest.raises(SetupError, match="is in use: process"):
            await DevStack(home, {}, port=0).__aenter__()
        assert over(home)
        assert stack.api_url


async def test_its_agent_is_its_users_at_the_first_start_and_at_the_next(home: Path) -> None:
    for _ in range(2):
        async with DevStack(home, {}, port=0) as stack, aiohttp.ClientSession(stack.api_url) as http:
            headers = {"Authorization": f"Bearer {stack.token}"}
            async with http.get(f"/v1/bridge/agents/{stack.agent_id}", headers=headers) as answer:
                told = await answer.json()
            assert (told["owner"], told["may"], told["online"]) == ("dev", ["owner"], "online")
            said = {"agent_id": "another"}
            async with http.post("/v1/bridge/agent-token", headers=headers, json=said) as answer:
                assert answer.status == 200
