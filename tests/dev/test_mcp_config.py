"""The ``mcpServers`` file: what is read, and that every fault says where it is and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon.dev.mcp_config import McpServer, load_mcp_config, parse_servers
from daemon.errors import SetupError


def test_the_file_of_an_mcp_host_is_read_and_what_is_not_ours_is_ignored(tmp_path: Path) -> None:
    servers = {
        "git": {"command": "uvx", "args": ["mcp-server-git"], "env": {"A": "b"}, "cwd": "/tmp", "autoApprove": ["x"]},
        "bare": {"command": "bare"},
        "off": {"disabled": True},
    }
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": servers, "theme": "dark"}))
    assert parse_servers(load_mcp_config(tmp_path / "mcp.json")) == [
        McpServer(name="git", command="uvx", args=("mcp-server-git",), env={"A": "b"}, cwd="/tmp"),
        McpServer(name="bare", command="bare"),
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"mcpServers": {', r"mcp\.json:1:17 is not JSON.*expected \{\"mcpServers\""),
        ("[]", "has no 'mcpServers' object; expected"),
        ('{"servers": {}}', "has no 'mcpServers' object; expected"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_no_such_file_is_refused_with_an_example(tmp_path: Path, text: str | bytes, told: str) -> None:
    (tmp_path / "mcp.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SetupError, match=told):
        load_mcp_config(tmp_path / "mcp.json")


def test_a_missing_file_is_refused_with_an_example(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"nowhere\.json cannot be read.*give the path of a file like"):
        load_mcp_config(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("uvx", "must be an object like"),
        ({}, "needs a 'command'"),
        ({"command": " "}, "needs a 'command'"),
        ({"url": "https://example.com/mcp"}, "only servers over stdio"),
        ({"command": "x", "args": "-v"}, "'args' must be a list of strings"),
        ({"command": "x", "env": {"PORT": 1}}, "'env' must be an object of strings"),
        ({"command": "x", "cwd": 1}, "'cwd' must be a string"),
    ],
)
def test_a_wrong_entry_is_refused_by_the_name_of_its_server(entry: Any, told: str) -> None:
    with pytest.raises(SetupError, match=f"server 'mine': .*{told}"):
        parse_servers({"mine": entry})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SetupError, match=r"server 'a': .*; server 'b': .*; server 'b': "):
        parse_servers({"a": {}, "b": {"args": 1}, "c": {"command": "fine"}})
