"""What only the dev Gateway lets a test arrange: slow and leaving agents, full buffers, a ledger.

These are sentences of the contract too (§1 to §4); a real Gateway keeps them where a client cannot reach. Bad weather
is in ``test_weather``.
"""

from __future__ import annotations

import asyncio
import json
import time
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from daemon.dev.gateway import DevGateway
from daemon.dev.scripted_agent import ScriptedAgent
from daemon.errors import SetupError
from tests.gateway.conftest import API, ECHO, Dev, Wire, dev_gateway, error


async def test_a_gateway_without_a_token_is_open(http: aiohttp.ClientSession) -> None:
    async with dev_gateway(http) as dev:
        answer, _ = await dev.wire.ask("GET", f"{API}/agents", headers={})
    assert answer.status == 200


async def test_no_agent_is_an_empty_list(http: aiohttp.ClientSession) -> None:
    gateway = DevGateway()
    wire = Wire(http, await gateway.start(), "nobody", "")
    try:
        _, body = await wire.ask("GET", f"{API}/agents")
    finally:
        await gateway.stop()
    assert body == b'{"agents":[]}\n'


async def test_annotations_travel_with_the_tool_list(dev: Dev) -> None:
    _, body = await dev.wire.ask("GET", f"{API}/agents/{dev.wire.agent}/tools")
    tools = {tool["name"]: tool for tool in json.loads(body)["tools"]}
    assert tools["wait"]["annotations"] == {"readOnlyHint": True}
    assert "annotations" not in tools["say"]


async def test_tools_are_null_until_the_agent_has_announced_them(dev: Dev) -> None:
    class Slow(ScriptedAgent):
        begun, go = asyncio.Event(), asyncio.Event()

        async def start(self, log: Any) -> None:
            self.begun.set()
            await self.go.wait()

    slow = Slow("slow")
    connecting = asyncio.create_task(dev.gateway.connect(slow))
    await slow.begun.wait()
    _, before = await dev.wire.ask("GET", f"{API}/agents/slow/tools")
    slow.go.set()
    await connecting
    _, after = await dev.wire.ask("GET", f"{API}/agents/slow/tools")
    assert json.loads(before) == {"agent_id": "slow", "tools": None}
    assert [tool["name"] for tool in json.loads(after)["tools"]] == [ECHO]


async def test_without_a_result_store_results_are_501_redis_not_enabled(http: aiohttp.ClientSession) -> None:
    async with dev_gateway(http, results=False) as dev:
        answer, body = await dev.wire.ask("GET", f"{API}/results/x")
    assert (answer.status, body) == (501, error("redis_not_enabled"))


async def test_last_seen_moves_with_calls(dev: Dev, monkeypatch: pytest.MonkeyPatch) -> None:
    later = int(time.time()) + 50
    monkeypatch.setattr("daemon.dev.tunnel.time", SimpleNamespace(time=lambda: later))
    async with dev.wire.subscribed() as stream:
        await stream.one("RESULT", await dev.wire.invoke(ECHO))
    _, body = await dev.wire.ask("GET", f"{API}/agents")
    assert json.loads(body)["agents"][0]["last_seen_at"] == later


async def test_a_subscriber_by_call_never_sees_a_disconnect(dev: Dev) -> None:
    async with dev.wire.subscribed(req_id="r") as by_call, dev.wire.subscribed() as all_of_it:
        await dev.gateway.disconnect("agent-1")
        assert (await all_of_it.event())["type"] == "DISCONNECT"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(by_call.event(), 0.05)


async def test_heartbeats_come_at_a_fixed_interval_whether_or_not_events_flow(http: aiohttp.ClientSession) -> None:
    async with dev_gateway(http, heartbeat_s=0.05) as dev, dev.wire.subscribed() as stream:
        assert await stream.frame() == ": ping"
        chatter = asyncio.create_task(_chatter(dev.gateway))
        frames = [await stream.frame()]
        while frames.count(": ping") < 3:
            frames.append(await stream.frame())
        chatter.cancel()
    assert len(frames) > 3


async def _chatter(gateway: DevGateway) -> None:
    while True:
        gateway.publish({"v": 1, "type": "NOISE"})
        await asyncio.sleep(0)


async def test_when_the_buffer_is_full_chunks_are_dropped_and_the_rest_pushes_out_the_oldest(
    http: aiohttp.ClientSession,
) -> None:
    async with dev_gateway(http, sse_buffer=4) as dev, dev.wire.subscribed() as stream:
        # one burst, faster than any reader: the fifth chunk is dropped, then two RESULTs push out two chunks
        for number in range(5):
            dev.gateway.publish({"v": 1, "type": "CHUNK", "req_id": f"c{number}"})
        for number in range(2):
            dev.gateway.publish({"v": 1, "type": "RESULT", "req_id": f"r{number}"})
        assert [(await stream.event())["req_id"] for _ in range(4)] == ["c2", "c3", "r0", "r1"]
        for number in range(8):
            dev.gateway.publish({"v": 1, "type": "RESULT", "req_id": f"r{number}"})
        assert [(await stream.event())["req_id"] for _ in range(4)] == ["r4", "r5", "r6", "r7"]


async def test_a_stopping_gateway_ends_the_stream_with_a_bare_eof_and_no_disconnect(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        await dev.gateway.stop()
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.event()
    assert stream.events == []


async def test_long_output_is_split_at_16384_bytes(dev: Dev) -> None:
    assert await _printed(dev.wire, ["x" * 40000 + "\n"]) == [16384, 16384, 7233]


async def test_output_is_never_split_inside_a_character(dev: Dev) -> None:
    assert await _printed(dev.wire, ["漢" * 6000]) == [16383, 1617]


async def _printed(wire: Wire, texts: list[str]) -> list[int]:
    """The sizes of the stdout chunks of a call that printed ``texts``, after checking that nothing is missing."""
    async with wire.subscribed(agent_id=wire.agent) as stream:
        req_id = await wire.invoke("say", {"texts": [*texts, "end"]})
        await stream.until(lambda event: event["type"] == "CHUNK" and event["payload"]["data"] == "end")
    chunks = [event["payload"] for event in stream.events if event["type"] == "CHUNK" and event["req_id"] == req_id]
    printed = [chunk["data"] for chunk in chunks if chunk["channel"] == "stdout"][:-1]
    assert "".join(printed) == "".join(texts)
    return [len(piece.encode()) for piece in printed]


async def test_what_the_chunk_queue_drops_is_counted_on_the_next_chunk_as_a_delta(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id=dev.wire.agent) as stream:
        flood = await dev.wire.invoke("say", {"texts": ["four\n"] * 600})
        await stream.one("RESULT", flood)
        while len([event for event in stream.events if event["type"] == "CHUNK"]) < 512:
            await stream.event()
        after = await dev.wire.invoke(ECHO)
        chunk = await stream.one("CHUNK", after)
        quiet = await dev.wire.invoke(ECHO)
        assert "dropped_bytes" not in (await stream.one("CHUNK", quiet))["payload"]
    lost = 600 - 511  # the queue holds 512, one of them names the tool
    assert (chunk["payload"]["dropped_bytes"], chunk["payload"]["dropped_lines"]) == (lost * 5, lost)


async def test_a_log_of_no_call_carries_the_req_id_only_while_exactly_one_call_runs(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id=dev.wire.agent) as stream:

        async def said(text: str) -> dict[str, Any]:
            dev.log("stderr", text)
            return await stream.until(lambda event: event["type"] == "CHUNK" and event["payload"]["data"] == text)

        assert "req_id" not in await said("idle\n")
        first = await dev.wire.invoke("wait")
        await stream.one("CHUNK", first)
        assert (await said("one call\n"))["req_id"] == first
        second = await dev.wire.invoke("wait")
        await stream.one("CHUNK", second)
        assert "req_id" not in await said("two calls\n")


async def test_a_tool_that_failed_by_itself_is_ok_true_with_is_error(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id=dev.wire.agent) as stream:
        result = await stream.one("RESULT", await dev.wire.invoke("fail"))
    content = [{"text": "Error executing tool fail", "type": "text"}]
    assert result["payload"] == {"ok": True, "result_json": {"content": content, "isError": True}}


async def test_a_call_that_broke_is_tool_call_failed(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id=dev.wire.agent) as stream:
        result = await stream.one("RESULT", await dev.wire.invoke("crash"))
    assert result["payload"] == {"ok": False, "error": {"message": "the tool broke", "code": "tool_call_failed"}}


async def test_a_running_call_is_cancelled_and_says_so(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id=dev.wire.agent) as stream:
        req_id = await dev.wire.invoke("wait")
        await dev.started.wait()
        await dev.wire.cancel(req_id)
        ack = await stream.one("CANCEL_ACK", req_id)
        result = await stream.one("RESULT", req_id)
    assert ack["payload"] == {"will_cancel": True}
    canceled = {"message": "canceled", "code": "canceled"}
    assert result["payload"] == {"ok": False, "canceled": True, "error": canceled}


async def test_a_call_cancelled_before_it_began_never_reaches_its_tool(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id=dev.wire.agent) as stream:
        body = {"req_id": "r", "agent_id": dev.wire.agent, "tool_name": "wait"}
        tunnel = dev.gateway._tunnels[dev.wire.agent]
        tunnel.invoke({"req_id": "r", "payload": {"tool": {"name": body["tool_name"]}}})
        tunnel.cancel("r")
        assert (await stream.one("RESULT", "r"))["payload"]["canceled"] is True
    assert not dev.started.is_set()
    assert dev.gateway.ledger == []


async def test_a_call_over_its_time_is_a_timeout(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id=dev.wire.agent) as stream:
        result = await stream.one("RESULT", await dev.wire.invoke("wait", timeout_ms=20))
    assert result["payload"] == {"ok": False, "error": {"message": "timeout", "code": "timeout"}}


async def test_a_connecting_agent_announces_its_tools_once(dev: Dev) -> None:
    async with dev.wire.subscribed(agent_id="late") as stream:
        await dev.gateway.connect(ScriptedAgent("late"))
        event = await stream.event()
    assert (event["type"], "req_id" in event) == ("TOOLS", False)
    assert [tool["name"] for tool in event["payload"]["tools"]] == [ECHO]


async def test_a_disconnect_has_neither_call_nor_payload_and_ends_no_call(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke("wait")
        await dev.started.wait()
        await dev.gateway.disconnect("agent-1")
        event = await stream.until(lambda event: event["type"] == "DISCONNECT")
        answer, said = await dev.wire.ask(
            "POST", f"{API}/invoke", json={"req_id": "r", "agent_id": "agent-1", "tool_name": ECHO}
        )
    assert set(event) == {"v", "type", "agent_id", "ts"}
    assert (answer.status, said) == (404, error("agent_offline"))
    assert not [event for event in stream.events if event["type"] == "RESULT" and event["req_id"] == req_id]


async def test_calls_run_concurrently(dev: Dev) -> None:
    meeting = asyncio.Barrier(2)

    async def meet(arguments: Any, emit: Any) -> dict[str, Any]:
        await meeting.wait()
        return {}

    await dev.gateway.disconnect("agent-1")
    agent = ScriptedAgent("agent-1")
    agent.tool("meet", meet)
    await dev.gateway.connect(agent)
    async with dev.wire.subscribed() as stream:
        for req_id in [await dev.wire.invoke("meet"), await dev.wire.invoke("meet")]:
            assert (await stream.one("RESULT", req_id))["payload"]["ok"] is True


# --- what the dev Gateway adds for tests ------------------------------------------------------------------------------


async def test_the_ledger_holds_what_really_ran_and_nothing_else(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        ran = await dev.wire.invoke(ECHO, {"n": 9007199254740993})
        unknown = await dev.wire.invoke("nosuch")
        await stream.one("RESULT", ran)
        await stream.one("RESULT", unknown)
    assert dev.gateway.ledger == [(ran, "agent-1", ECHO, {"n": 9007199254740992})]


async def test_a_taken_port_is_said_plainly(dev: Dev) -> None:
    port = int(dev.gateway.url.rpartition(":")[2])
    with pytest.raises(SetupError, match=f"port {port} of 127.0.0.1 is already in use"):
        await DevGateway().start(port=port)
