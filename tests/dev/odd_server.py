"""An MCP server that misbehaves on request, over stdio; ``test_mcp_agent`` starts it."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from pathlib import Path

from mcp import MCPDeprecationWarning
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("odd")


@server.tool(name="dotted.name-x")
def dotted() -> str:
    """Has a name that is no name."""
    return "dotted"


@server.tool()
async def hang(marker: str, ctx: Context) -> str:
    """Never ends; writes a file when it is cancelled."""
    await ctx.log("warning", {"now": "hanging"})
    await ctx.report_progress(1, 4)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        Path(marker).touch()  # noqa: ASYNC240 - the last thing this call does
        raise
    return "never"


@server.tool()
def die() -> str:
    """Takes the whole server down."""
    sys.stderr.write("last words\n")
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    server.run("stdio")
