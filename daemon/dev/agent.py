"""What the dev Gateway asks of an in-process agent, and the echo tool that every agent offers.

``tunnel`` drives agents; ``scripted_agent`` and ``mcp_agent`` are the two kinds. An agent knows nothing of the Gateway:
it never sees req_ids, envelopes or subscribers.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from daemon.dev.envelope import Json

Emit = Callable[[str, str], None]  # (channel: "stdout" | "stderr", text) of the call it was given to
Log = Callable[[str, str], None]  # the same for text that belongs to no call in particular

ECHO = "bridge__echo"
ALIASES = {"echo": ECHO}

_ECHO_TOOL: Json = {
    "name": ECHO,
    "description": "Answers its own arguments; prints each of `lines`, waiting `sleep_ms` before each.",
    "input_schema": {
        "type": "object",
        "properties": {
            "lines": {"type": "array", "items": {"type": "string"}},
            "sleep_ms": {"type": "integer", "minimum": 0},
        },
    },
    "annotations": {"readOnlyHint": True, "idempotentHint": True, "openWorldHint": False},
    "meta": {"server": "bridge", "original_tool": "echo"},
}


class ToolFailure(Exception):
    """The call could not be made or broke off: RESULT ``ok:false``. (A tool that reports a failure is ``isError``.)"""

    def __init__(self, message: str, *, code: str = "tool_call_failed") -> None:
        super().__init__(message)
        self.code = code


class LocalAgent(ABC):
    """An agent inside this process. The Gateway starts it, lists its tools once, calls them concurrently, stops it."""

    def __init__(self, agent_id: str) -> None:
        self.agent_id = agent_id
        self.token = ""
        """What it shows the Gateway at each connection (AUTH)."""

    async def start(self, log: Log) -> None:  # noqa: B027 - an agent with nothing to open has nothing to do
        """Opens what the tools need; ``log`` takes text that belongs to no call in particular."""

    async def stop(self) -> None:  # noqa: B027 - as above
        """Closes what start() opened; calls in flight were cancelled before."""

    def tools(self) -> list[Json]:
        """What the agent offers, in the shape of the TOOLS envelope, with MCP annotations under ``annotations``."""
        return [_ECHO_TOOL, *self._own_tools()]

    async def call(self, tool_name: str, arguments: Json | None, emit: Emit) -> Json:
        """Runs a tool and returns its ``result_json``; raises ``ToolFailure`` (or anything) when it could not."""
        if tool_name == ECHO:
            return await _echo(arguments, emit)
        return await self._call(tool_name, arguments, emit)

    @abstractmethod
    def _own_tools(self) -> list[Json]:
        """The tools beside the echo."""

    @abstractmethod
    async def _call(self, tool_name: str, arguments: Json | None, emit: Emit) -> Json:
        """Runs one of ``_own_tools``."""


async def _echo(arguments: Json | None, emit: Emit) -> Json:
    given: Json = arguments or {}
    lines: Any = given.get("lines")
    wait_ms: Any = given.get("sleep_ms")
    wait_s = wait_ms / 1000 if isinstance(wait_ms, int | float) and wait_ms > 0 else 0.0
    if isinstance(lines, list) and lines:
        for line in lines:
            if wait_s:
                await asyncio.sleep(wait_s)
            emit("stdout", f"{line}\n")
    elif wait_s:
        await asyncio.sleep(wait_s)
    return {"echo": arguments}
