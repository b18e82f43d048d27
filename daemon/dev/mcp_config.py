"""Reading the ``mcpServers`` JSON that MCP hosts use, with errors that say what to do.

``daemon/cli``, ``mcp_agent`` and tests call this. It never starts anything and reads no environment.

    {"mcpServers": {"git": {"command": "uvx", "args": ["mcp-server-git"], "env": {"KEY": "value"}, "cwd": "/there"}}}

``args``, ``env`` and ``cwd`` may be left out; an entry with ``"disabled": true`` is passed over, and what else hosts
keep in an entry is ignored. Servers reached by URL are refused: the dev agent speaks stdio only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.errors import SetupError

_EXAMPLE = '{"mcpServers": {"git": {"command": "uvx", "args": ["mcp-server-git"]}}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """How to start one MCP server over stdio."""

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


def load_mcp_config(path: Path) -> Mapping[str, Any]:
    """The checked ``mcpServers`` object of a file, as ``McpAgent`` takes it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise SetupError(f"{path} cannot be read ({fault}); give the path of a file like {_EXAMPLE}") from fault
    try:
        document = json.loads(text)
    except json.JSONDecodeError as fault:
        raise SetupError(
            f"{path}:{fault.lineno}:{fault.colno} is not JSON ({fault.msg}); expected {_EXAMPLE}"
        ) from fault
    if not isinstance(document, dict) or not isinstance(document.get("mcpServers"), dict):
        raise SetupError(f"{path} has no 'mcpServers' object; expected {_EXAMPLE}")
    servers: Mapping[str, Any] = document["mcpServers"]
    parse_servers(servers, where=str(path))
    return servers


def parse_servers(servers: Mapping[str, Any], *, where: str = "mcpServers") -> list[McpServer]:
    """The servers of an ``mcpServers`` object that are not disabled; ``SetupError`` names every fault at once."""
    parsed: list[McpServer] = []
    faults: list[str] = []
    for name, entry in servers.items():
        if isinstance(entry, Mapping) and entry.get("disabled") is True:
            continue
        found = _faults(entry)
        faults += [f"server {name!r}: {fault}" for fault in found]
        if not found:
            parsed.append(
                McpServer(
                    name=name,
                    command=entry["command"],
                    args=tuple(entry.get("args") or ()),
                    env=dict(entry.get("env") or {}),
                    cwd=entry.get("cwd"),
                )
            )
    if faults:
        raise SetupError(f"{where}: " + "; ".join(faults))
    return parsed


def _faults(entry: object) -> list[str]:
    if not isinstance(entry, Mapping):
        return ['must be an object like {"command": "uvx", "args": ["mcp-server-git"]}']
    if "command" not in entry and "url" in entry:
        return ["has a 'url', but only servers over stdio can be used here: give the 'command' that starts it"]
    found: list[str] = []
    if not isinstance(entry.get("command"), str) or not entry["command"].strip():
        found.append("needs a 'command': the program that starts it, as a string")
    args = entry.get("args") or []
    if not isinstance(args, list | tuple) or not all(isinstance(arg, str) for arg in args):
        found.append("'args' must be a list of strings")
    env = entry.get("env") or {}
    if not isinstance(env, Mapping) or not all(isinstance(part, str) for pair in env.items() for part in pair):
        found.append("'env' must be an object of strings (write numbers and booleans in quotes)")
    if not isinstance(entry.get("cwd"), str | None):
        found.append("'cwd' must be a string: the directory to start it in")
    return found
