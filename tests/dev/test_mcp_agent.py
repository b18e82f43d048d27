"""The MCP agent with real servers over stdio: git and time from PyPI, our workbench, and one that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from daemon.dev.agent import Log, ToolFailure
from daemon.dev.example import demo_mcp_servers, demo_repository, demo_workflow
from daemon.dev.gateway import DevGateway
from daemon.dev.mcp_agent import McpAgent
from tests.patience import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD = {"command": sys.executable, "args": [str(Path(__file__).with_name("odd_server.py"))]}
PATIENT_S = 60.0  # a test machine may be busy; servers are up in about a second


class Overheard(McpAgent):
    """An agent whose logs the test hears as well as the Gateway."""

    ear: Log

    async def start(self, log: Log) -> None:
        def both(channel: str, text: str) -> None:
            self.ear(channel, text)
            log(channel, text)

        await super().start(both)


class Desk:
    """A dev Gateway with an MCP agent, and all that the agent said."""

    def __init__(self, home: Path) -> None:
        self.repo, self.out, self.logs = demo_repository(home, home), home / "out", home / "logs"
        self.said: list[tuple[str, str]] = []
        self.spoke = asyncio.Event()
        servers = demo_mcp_servers(self.repo, self.out) | {"odd": ODD, "gone": {"command": "no-such-command"}}
        self.agent = Overheard("agent-1", servers, log_dir=self.logs, start_s=PATIENT_S)
        self.agent.ear = self.hear
        self.gateway = DevGateway()
        self.gateway.add_agent(self.agent)

    def hear(self, channel: str, text: str) -> None:
        self.said.append((channel, text))
        self.spoke.set()

    async def heard(self, channel: str, text: str) -> None:
        async with asyncio.timeout(PATIENT_S):
            while (channel, text) not in self.said:
                self.spoke.clear()
                await self.spoke.wait()

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self.agent.call(tool, arguments or None, self.hear)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path_factory.mktemp("mcp"))
    try:
        await desk.gateway.start()
        yield desk
    finally:
        await desk.gateway.stop()


@pytest.fixture(autouse=True)
def fresh(desk: Desk) -> None:
    desk.said.clear()


def text_of(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


async def test_tools_of_all_servers_are_named_after_server_and_tool(desk: Desk) -> None:
    tools = {tool["name"]: tool for tool in desk.agent.tools()}
    assert {"bridge__echo", "git__git_log", "time__get_current_time", "workbench__release_notes"} <= set(tools)
    assert tools["git__git_log"]["meta"] == {"server": "git", "original_tool": "git_log"}
    assert tools["git__git_log"]["input_schema"]["required"] == ["repo_path"]
    assert tools["git__git_log"]["description"]


async def test_names_are_cleaned_and_the_original_is_kept(desk: Desk) -> None:
    tools = {tool["name"]: tool for tool in desk.agent.tools()}
    assert tools["odd__dotted_name_x"]["meta"] == {"server": "odd", "original_tool": "dotted.name-x"}
    assert text_of(await desk.call("odd__dotted_name_x")) == "dotted"


async def test_annotations_travel_with_the_tools_and_are_absent_where_a_server_gives_none(desk: Desk) -> None:
    tools = {tool["name"]: tool for tool in desk.agent.tools()}
    assert tools["git__git_log"]["annotations"]["readOnlyHint"] is True
    assert tools["time__get_current_time"]["annotations"]["readOnlyHint"] is True
    assert tools["workbench__write_file"]["annotations"] == {
        "title": "Write a file",
        "readOnlyHint": False,
        "destructiveHint": True,
        "idempotentHint": False,
        "openWorldHint": False,
    }
    assert "annotations" not in tools["odd__die"]


async def test_calls_reach_the_real_servers_concurrently(desk: Desk) -> None:
    history, clock = await asyncio.gather(
        desk.call("git__git_log", repo_path=str(desk.repo), max_count=2),
        desk.call("time__get_current_time", timezone="UTC"),
    )
    assert "Test the alert" in text_of(history)
    assert clock["structuredContent"]["timezone"] == "UTC"
    assert "isError" not in clock


async def test_a_failed_tool_is_a_result_with_is_error(desk: Desk) -> None:
    wrong = await desk.call("git__git_log", repo_path="/nowhere")
    assert wrong["isError"] is True
    refused = await desk.call("workbench__write_file", path="../outside", content="x")
    assert (refused["isError"], "not a file below" in text_of(refused)) == (True, True)


async def test_the_workbench_drafts_while_it_tells_and_finds_what_a_generator_cannot_know(desk: Desk) -> None:
    drafted = await desk.call("workbench__release_notes", max_count=3)
    logs = [text for channel, text in desk.said if channel == "stderr"]
    progress = [text for channel, text in desk.said if channel == "stdout"]
    assert len(logs) == len(progress) == 3
    assert logs[0].startswith('[workbench] (info) {"commit":"')
    assert progress[2].endswith(" (3 of 3)\n")
    assert "Test the alert (+3 −0, 3 lines in the files it touched)" in text_of(drafted)
    checked = await desk.call("workbench__lint_notes")
    assert (checked["isError"], "no section '## Upgrading'" in text_of(checked)) == (True, True)
    await desk.call("workbench__write_file", path="NOTES.md", draft="release-notes.md")
    assert (desk.out / "NOTES.md").read_text() == text_of(drafted)


async def test_every_step_of_the_demo_does_what_it_says_and_its_logs_carry_the_call(desk: Desk) -> None:
    steps = demo_workflow("agent-1", desk.repo, seconds=0.1)["steps"]
    async with (
        aiohttp.ClientSession(desk.gateway.url) as http,
        http.get("/internal/bridge/events") as events,
    ):
        went_well = {step["id"]: await succeeded(http, events, step) for step in steps}
    assert went_well == {"history": True, "clock": True, "draft": True, "check": False, "publish": True}
    assert (desk.out / "RELEASE_NOTES.md").read_text().startswith("# Release notes")


async def succeeded(http: aiohttp.ClientSession, events: aiohttp.ClientResponse, step: dict[str, Any]) -> bool:
    """Runs the tool of one step, reads its events up to its RESULT, and says how that was."""
    async with http.post("/internal/bridge/invoke", json=step["tool_config"] | {"req_id": step["id"]}) as answer:
        assert answer.status == 202
    async with asyncio.timeout(PATIENT_S):
        async for line in events.content:
            if line.startswith(b'data: {"v"'):
                event = json.loads(line.removeprefix(b"data: "))
                assert event["req_id"] == step["id"]
                if event["type"] == "RESULT":
                    return bool(event["payload"]["ok"] and not event["payload"]["result_json"].get("isError"))
    raise AssertionError("the stream ended")


async def test_progress_without_a_message_is_a_share(desk: Desk, tmp_path: Path) -> None:
    call = asyncio.create_task(desk.call("odd__hang", marker=str(tmp_path / "marker")))
    await desk.heard("stdout", "progress 1/4\n")
    call.cancel()
    await asyncio.wait({call})


async def test_cancelling_a_call_cancels_it_at_the_server(desk: Desk, tmp_path: Path) -> None:
    call = asyncio.create_task(desk.call("odd__hang", marker=str(tmp_path / "marker")))
    await desk.heard("stderr", '[odd] (warning) {"now":"hanging"}\n')
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(wait_until, (tmp_path / "marker").exists)


async def test_a_dead_server_costs_only_its_own_tools(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    listed = desk.agent.tools()
    for _ in range(2):
        with pytest.raises(ToolFailure, match="connection closed: MCP server odd has ended"):
            await desk.call("odd__die")
    assert desk.agent.tools() == listed
    assert (await desk.call("time__get_current_time", timezone="UTC"))["structuredContent"]["timezone"] == "UTC"
    assert [record.message for record in caplog.records if "odd" in record.message] == [
        "MCP server odd has ended: its tools stay listed and fail"
    ]
    assert "last words" in (desk.logs / "odd.log").read_text()


async def test_a_missing_command_and_a_server_that_never_answers_are_left_out_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mute = {"command": sys.executable, "args": ["-c", "import sys; sys.stdin.read()"]}
    agent = McpAgent("agent-2", {"gone": {"command": "no-such-command"}, "mute": mute}, start_s=0.5)
    with caplog.at_level(logging.WARNING):
        await agent.start(lambda _channel, _text: None)
    try:
        assert [tool["name"] for tool in agent.tools()] == ["bridge__echo"]
        assert {"gone", "mute"} == {name for name in ("gone", "mute") if f"MCP server {name} " in caplog.text}
    finally:
        await agent.stop()
