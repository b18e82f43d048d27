"""``runwarden workflow …`` and ``run …`` in this process, beside the node or the stand-in that they talk to."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from daemon.cli import main


class Person:
    """Somebody at a command line: where they talk to, and as whom."""

    def __init__(self, url: str, token: str, home: Path) -> None:
        self.url = url
        self.token = token
        self.home = home

    async def says(self, *arguments: str, answer: str | None = None, **settings: str | None) -> Result:
        """One command, in a thread: the server answers from this loop."""
        given: dict[str, str | None] = {"url": self.url, "token": self.token} | settings
        environment = {f"RUNWARDEN_{name.upper()}": value for name, value in given.items()}
        environment["XDG_CONFIG_HOME"] = str(self.home)
        return await asyncio.to_thread(CliRunner().invoke, main, arguments, input=answer, env=environment)

    async def gets(self, *arguments: str, code: int = 0) -> Any:
        """The JSON document that a command answers."""
        told = await self.says(*arguments, "--json")
        assert told.exit_code == code, told.output
        return json.loads(told.stdout)

    async def refused(self, *arguments: str, code: int, **settings: str | None) -> dict[str, Any]:
        """The error that a command tells programs; it says the same to people, with what to do next."""
        told = await self.says(*arguments, "--json", **settings)
        assert (told.exit_code, told.stdout) == (code, ""), told.output
        error: dict[str, Any] = json.loads(told.stderr)["error"]
        assert error["exit_code"] == code
        plainly = await self.says(*arguments, **settings)
        assert plainly.exit_code == code
        assert "Traceback" not in plainly.output
        return error
