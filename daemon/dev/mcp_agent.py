"""An agent that puts real MCP servers behind the dev Gateway, as the real agent does.

``daemon/cli`` and tests make one from an ``mcpServers`` object. Tools are named ``{server}__{tool}``; a server that
cannot be started, or dies, costs only its own tools. It never writes to the terminal and never judges annotations: they
travel with the tool list for others to judge.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mcp_types import Tool

from daemon.dev.agent import Emit, LocalAgent, Log, ToolFailure
from daemon.dev.envelope import Json, encode
from daemon.dev.mcp_config import load_mcp_config, parse_servers
from daemon.dev.mcp_session import McpSession

__all__ = ["McpAgent", "load_mcp_config"]

log = logging.getLogger(__name__)

_START_S = 10.0
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_]")


class McpAgent(LocalAgent):
    """``servers`` is an ``mcpServers`` object (the inner one); ``log_dir`` takes what the servers write to stderr.

    Start-up takes as long as the slowest server, at most ``start_s`` seconds; calls run concurrently.
    """

    def __init__(
        self, agent_id: str, servers: Mapping[str, Any], *, log_dir: Path | None = None, start_s: float = _START_S
    ) -> None:
        super().__init__(agent_id)
        self._servers = parse_servers(servers)
        self._log_dir = log_dir
        self._start_s = start_s
        self._log: Log = lambda _channel, _text: None
        self._sessions: list[McpSession] = []
        self._offered: dict[str, tuple[McpSession, Tool]] = {}

    async def start(self, log: Log) -> None:
        """Starts every server in parallel; whoever is not there in time is left out with a warning."""
        self._log = log
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        self._sessions = [McpSession(server, self._server_said, self._stderr(server.name)) for server in self._servers]
        await asyncio.gather(*(session.open(self._start_s) for session in self._sessions))
        for session in self._sessions:
            for tool in session.tools:
                self._offer(f"{_clean(session.server.name)}__{_clean(tool.name)}", session, tool)

    async def stop(self) -> None:
        """Ends the servers, all at once."""
        await asyncio.gather(*(session.close() for session in self._sessions))

    def _offer(self, name: str, session: McpSession, tool: Tool) -> None:
        if name in self._offered:
            log.warning("two tools are called %s after cleaning their names: the later one is used", name)
        self._offered[name] = (session, tool)

    def _own_tools(self) -> list[Json]:
        return [_listed(name, session, tool) for name, (session, tool) in self._offered.items()]

    async def _call(self, tool_name: str, arguments: Json | None, emit: Emit) -> Json:
        if tool_name not in self._offered:
            raise ToolFailure(f"tool not found: {tool_name}")
        session, tool = self._offered[tool_name]

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            share = f"progress {progress:g}" if total is None else f"progress {progress:g}/{total:g}"
            emit("stdout", f"{message or share}\n")

        return await session.call(tool.name, arguments, progressed)

    def _server_said(self, server: str, level: str, data: Any) -> None:
        self._log("stderr", f"[{server}] ({level}) {encode(data).decode()}\n")

    def _stderr(self, server: str) -> Path | None:
        return None if self._log_dir is None else self._log_dir / f"{_clean(server)}.log"


def _clean(name: str) -> str:
    return _NOT_A_NAME.sub("_", name)


def _listed(name: str, session: McpSession, tool: Tool) -> Json:
    listed: Json = {
        "name": name,
        "description": tool.description or "",
        "input_schema": tool.input_schema,
        "meta": {"server": session.server.name, "original_tool": tool.name},
    }
    if tool.annotations is not None:
        listed["annotations"] = tool.annotations.model_dump(mode="json", by_alias=True, exclude_none=True)
    return listed
