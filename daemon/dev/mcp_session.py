"""One MCP server as a child process, spoken to over stdio with the official SDK.

``mcp_agent`` owns one per configured server. The SDK's cancel scopes must be entered and left in the same task, so the
session lives in a task of its own from ``open`` to ``close``; requests may come from any task. It never restarts a
server: what the real agent does with a dead one is to let its calls fail.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp import ClientSession, MCPError, StdioServerParameters, stdio_client
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import (
    CONNECTION_CLOSED,
    UNSUPPORTED_PROTOCOL_VERSION,
    CallToolRequest,
    CallToolRequestParams,
    EmptyResult,
    Implementation,
    LoggingMessageNotificationParams,
    PaginatedRequestParams,
    SetLevelRequest,
    SetLevelRequestParams,
    Tool,
)
from pydantic import RootModel

from daemon.dev.agent import ToolFailure
from daemon.dev.envelope import Json
from daemon.dev.mcp_config import McpServer

log = logging.getLogger(__name__)

OnLog = Callable[[str, str, Any], None]  # (server, level, data)


class _Verbatim(RootModel[dict[str, Any]]):
    """A result as the server sent it; the SDK has checked it against the protocol, and we add nothing."""


class McpSession:
    """``open``, then ``tools`` and ``call``, then ``close``; the server's stderr goes to ``stderr_path`` or nowhere."""

    def __init__(self, server: McpServer, on_log: OnLog, stderr_path: Path | None) -> None:
        self.server = server
        self.tools: list[Tool] = []
        self._on_log = on_log
        self._stderr_path = stderr_path
        self._session: ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = asyncio.Event()
        self._mourned = False

    async def open(self, patience_s: float) -> bool:
        """Starts the server and lists its tools; False (and a warning) when that failed or took too long."""
        self._task = asyncio.create_task(self._live(), name=f"MCP server {self.server.name}")
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({self._task, ready}, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._ready.is_set():
            return True
        if not self._task.done():
            log.warning("MCP server %s did not answer within %.0f s: going on without it", self.server.name, patience_s)
            self._task.cancel()
        return False

    async def close(self) -> None:
        """Ends the server as the protocol asks (its stdin closes, then SIGTERM, then SIGKILL) and waits for that."""
        self._closing.set()
        if self._task is not None:
            if not self._ready.is_set():
                self._task.cancel()  # still starting: it may never come to look whether we are closing
            await asyncio.gather(self._task, return_exceptions=True)

    async def call(self, tool: str, arguments: Json | None, on_progress: ProgressFnT) -> Json:
        """One ``tools/call``; cancelling this coroutine cancels the request at the server."""
        if self._session is None:
            raise ToolFailure(f"connection closed: MCP server {self.server.name} is not running (EOF)")
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=arguments))
        try:
            answer = await self._session.send_request(request, _Verbatim, progress_callback=on_progress)
        except MCPError as fault:
            if fault.code != CONNECTION_CLOSED:
                raise ToolFailure(fault.message) from fault
            if not self._mourned:
                self._mourned = True
                log.warning("MCP server %s has ended: its tools stay listed and fail", self.server.name)
            message = f"connection closed: MCP server {self.server.name} has ended (EOF)"
            raise ToolFailure(message) from fault
        result = answer.root
        if result.get("isError") is False:  # the real agent leaves it out
            del result["isError"]
        return result

    async def _live(self) -> None:
        """The whole life of the session, in one task."""
        parameters = StdioServerParameters(
            command=self.server.command,
            args=list(self.server.args),
            env=dict(self.server.env),
            cwd=self.server.cwd,
        )
        try:
            with (self._stderr_path or Path(os.devnull)).open("a", encoding="utf-8") as stderr:
                async with (
                    stdio_client(parameters, errlog=stderr) as (reading, writing),
                    ClientSession(
                        reading,
                        writing,
                        logging_callback=self._logged,
                        log_level="info",
                        client_info=Implementation(name="runwarden-dev-agent", version="1"),
                    ) as session,
                ):
                    await self._agree(session)
                    self.tools = await _list_tools(session)
                    self._session = session
                    self._ready.set()
                    await self._closing.wait()
        except Exception as fault:  # noqa: BLE001 - whatever one server does wrong must not touch the others
            reason = f"{type(fault).__name__}: {fault}"
            log.warning("MCP server %s (%s) failed: %s", self.server.name, self.server.command, reason)
        finally:
            self._session = None

    async def _agree(self, session: ClientSession) -> None:
        """The handshake every server knows first; the newer, handshake-less protocol only where it is asked for."""
        try:
            await session.initialize()
        except MCPError as fault:
            if fault.code != UNSUPPORTED_PROTOCOL_VERSION:
                raise
            await session.discover()
            return
        capabilities = session.server_capabilities
        if capabilities is not None and capabilities.logging is not None:
            # sent by hand: the SDK's method for it is deprecated and warns
            await session.send_request(SetLevelRequest(params=SetLevelRequestParams(level="info")), EmptyResult)

    async def _logged(self, params: LoggingMessageNotificationParams) -> None:
        self._on_log(self.server.name, params.level, params.data)


async def _list_tools(session: ClientSession) -> list[Tool]:
    tools: list[Tool] = []
    cursor: str | None = None
    while True:
        page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
        tools += page.tools
        cursor = page.next_cursor
        if not cursor:
            return tools
