"""Each weather of the dev Gateway as a client sees it: one test a condition, named after it.

That a client and a run survive it is shown in ``tests/weather``. That every condition has its tests is shown there too.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from daemon.dev.scripted_agent import ScriptedAgent
from tests.gateway.conftest import API, ECHO, Dev, Stream, dev_gateway, error
from tests.patience import eventually, let_pass

CANCELED = {"ok": False, "canceled": True, "error": {"message": "canceled", "code": "canceled"}}


async def stored(dev: Dev, req_id: str) -> Any:
    """The payload of the stored RESULT; None when there is none."""
    answer, body = await dev.wire.ask("GET", f"{API}/results/{req_id}")
    return json.loads(body)["payload"] if answer.status == 200 else None


async def waiting_call(dev: Dev, stream: Stream) -> str:
    """A call whose tool is running."""
    req_id = await dev.wire.invoke("wait")
    await stream.one("INVOKE_ACK", req_id)
    await dev.started.wait()
    return req_id


def told(stream: Stream, req_id: str | None = None) -> list[str]:
    """The types of what was seen so far, of one call and of its agent's connection."""
    return [event["type"] for event in stream.events if event.get("req_id") in (None, req_id)]


async def until_told(stream: Stream, kind: str, times: int = 1) -> None:
    while told(stream, None).count(kind) < times:
        await stream.event()


def attempt(dev: Dev, path: str = "invoke", **more: Any) -> Any:
    """A call that may be answered in any way."""
    body = {"req_id": "r", "agent_id": dev.wire.agent, "tool_name": ECHO, **more}
    return dev.wire.ask("POST", f"{API}/{path}", json=body)


async def hangs(dev: Dev) -> None:
    """Wait until a call has reached its agent's connection and is not written to it."""
    await eventually(lambda: dev.gateway._tunnels["agent-1"]._socket.locked(), what="the call hanging")


async def test_lost_result_is_stored_and_never_published(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        with dev.gateway.weather.during("lost_result"):
            lost = await dev.wire.invoke(ECHO)
            await stream.one("CHUNK", lost)
        seen = await dev.wire.invoke(ECHO)
        await stream.one("RESULT", seen)
    assert [event["req_id"] for event in stream.events if event["type"] == "RESULT"] == [seen]
    assert (await stored(dev, lost))["ok"] is True


async def test_lost_result_after_cancel_leaves_only_the_cancel_ack(dev: Dev) -> None:
    dev.gateway.weather.change("lost_result_after_cancel")
    async with dev.wire.subscribed() as stream:
        req_id = await waiting_call(dev, stream)
        await dev.wire.cancel(req_id)
        ack = await stream.one("CANCEL_ACK", req_id)
        await stream.one("RESULT", await dev.wire.invoke(ECHO))
    assert ack["payload"] == {"will_cancel": True}
    assert "RESULT" not in told(stream, req_id)
    assert await stored(dev, req_id) is None


async def test_lost_result_after_timeout_is_silence_and_a_cancel_finds_nothing(dev: Dev) -> None:
    dev.gateway.weather.change("lost_result_after_timeout")
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke("wait", timeout_ms=20)
        await eventually(lambda: not dev.gateway._tunnels["agent-1"]._calls, what="the agent's own deadline")
        await dev.wire.cancel(req_id)
        ack = await stream.one("CANCEL_ACK", req_id)
    assert ack["payload"] == {"will_cancel": False, "reason": "unknown_req_id"}
    assert "RESULT" not in told(stream, req_id)
    assert await stored(dev, req_id) is None


async def test_chunk_after_result_puts_every_chunk_behind(dev: Dev) -> None:
    dev.gateway.weather.change("chunk_after_result")
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke(ECHO, {"lines": ["a", "b"], "sleep_ms": 5})
        while told(stream, req_id).count("CHUNK") < 3:
            await stream.event()
    assert told(stream, req_id) == ["INVOKE_ACK", "RESULT", "CHUNK", "CHUNK", "CHUNK"]


async def test_duplicate_result_comes_twice(dev: Dev) -> None:
    dev.gateway.weather.change("duplicate_result")
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke(ECHO)
        while told(stream, req_id).count("RESULT") < 2:
            await stream.event()
    first, second = [event for event in stream.events if event["type"] == "RESULT"]
    assert first == second


async def test_late_result_comes_and_is_stored_when_the_weather_changes(dev: Dev) -> None:
    dev.gateway.weather.change("late_result")
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke(ECHO)
        await stream.one("CHUNK", req_id)
        assert await stored(dev, req_id) is None
        dev.gateway.weather.change()
        result = await stream.one("RESULT", req_id)
    assert result["payload"]["ok"] is True
    assert await stored(dev, req_id) == result["payload"]


async def test_collateral_canceled_takes_an_innocent_call_along(dev: Dev) -> None:
    dev.gateway.weather.change("collateral_canceled")
    async with dev.wire.subscribed() as stream:
        innocent = await waiting_call(dev, stream)
        guilty = await dev.wire.invoke("wait")
        await stream.one("CHUNK", guilty)
        await dev.wire.cancel(guilty)
        assert (await stream.one("RESULT", innocent))["payload"] == CANCELED
    after_cancel = told(stream, guilty)[told(stream, guilty).index("CANCEL_ACK") :]
    assert after_cancel == ["CANCEL_ACK", "RESULT", "DISCONNECT", "TOOLS", "RESULT"]


async def test_sse_overflow_pushes_the_result_out_of_a_full_buffer(http: aiohttp.ClientSession) -> None:
    async with dev_gateway(http, sse_buffer=8) as dev, dev.wire.subscribed() as stream:
        dev.gateway.weather.change("sse_overflow")
        lost = await dev.wire.invoke(ECHO)
        while [event.get("agent_id") for event in stream.events].count("somebody-else") < 8:
            await stream.event()
        dev.gateway.weather.change()
        await stream.one("RESULT", await dev.wire.invoke(ECHO))
        assert "RESULT" not in told(stream, lost)
        assert (await stored(dev, lost))["ok"] is True


async def test_silent_is_accepted_and_never_acknowledged_nor_run(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        with dev.gateway.weather.during("silent"):
            await dev.wire.invoke(ECHO)
        seen = await dev.wire.invoke(ECHO)
        await stream.one("RESULT", seen)
        await stream.one("CHUNK", seen)
    assert {event["req_id"] for event in stream.events} == {seen}
    assert [run.req_id for run in dev.gateway.ledger] == [seen]


async def test_frozen_agent_is_online_and_silent_and_runs_the_queued_calls_late(dev: Dev) -> None:
    dev.gateway.weather.change("frozen_agent")
    async with dev.wire.subscribed() as stream:
        calls = [await dev.wire.invoke(ECHO), await dev.wire.invoke(ECHO)]
        await dev.wire.cancel(calls[0])
        _, listed = await dev.wire.ask("GET", f"{API}/agents")
        await let_pass(0.05)
        assert (dev.gateway.ledger, json.loads(listed)["agents"][0]["status"]) == ([], "online")
        dev.gateway.weather.change()
        for req_id in calls:
            assert (await stream.one("RESULT", req_id))["payload"]["ok"] is True
        ack = await stream.one("CANCEL_ACK", calls[0])
    assert ack["payload"]["will_cancel"] is False
    assert [run.req_id for run in dev.gateway.ledger] == calls


async def test_hanging_invoke_is_answered_when_the_weather_changes(dev: Dev) -> None:
    dev.gateway.weather.change("hanging_invoke")
    async with dev.wire.subscribed() as stream:
        hanging = asyncio.create_task(attempt(dev))
        await hangs(dev)
        assert (hanging.done(), stream.events, dev.gateway.ledger) == (False, [], [])
        dev.gateway.weather.change()
        answer, _ = await hanging
        assert answer.status == 202
        assert (await stream.one("RESULT", "r"))["payload"]["ok"] is True


async def test_hanging_invoke_given_up_tears_down_the_agents_connection(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        other = await waiting_call(dev, stream)
        dev.gateway.weather.change("hanging_invoke")
        hanging = asyncio.create_task(attempt(dev))
        await hangs(dev)
        hanging.cancel()
        assert (await stream.one("RESULT", other))["payload"] == CANCELED
    assert told(stream)[-2:] == ["DISCONNECT", "TOOLS"]
    assert [run.req_id for run in dev.gateway.ledger] == [other]


async def test_hanging_invoke_at_one_agent_leaves_the_others_alone(dev: Dev) -> None:
    await dev.gateway.connect(ScriptedAgent("other"))
    dev.gateway.weather.change("hanging_invoke@agent-1")
    async with dev.wire.subscribed() as stream:
        answer, _ = await attempt(dev, agent_id="other")
        assert answer.status == 202
        assert (await stream.one("RESULT", "r"))["agent_id"] == "other"


@pytest.mark.parametrize("path", ["invoke", "cancel"])
async def test_ghost_agent_is_listed_online_and_unreachable(dev: Dev, path: str) -> None:
    dev.gateway.weather.change("ghost_agent")
    answer, body = await attempt(dev, path)
    _, listed = await dev.wire.ask("GET", f"{API}/agents")
    assert (answer.status, body) == (502, error("send_failed"))
    assert json.loads(listed)["agents"][0]["status"] == "online"
    assert dev.gateway.ledger == []


async def test_false_disconnect_ends_nothing(dev: Dev) -> None:
    dev.gateway.weather.change("false_disconnect")
    async with dev.wire.subscribed() as stream:
        req_id = await waiting_call(dev, stream)
        await until_told(stream, "DISCONNECT")
        _, listed = await dev.wire.ask("GET", f"{API}/agents")
        dev.finish.set()
        assert (await stream.one("RESULT", req_id))["payload"]["ok"] is True
    assert json.loads(listed)["agents"][0]["status"] == "online"


async def test_resent_result_comes_after_disconnect_and_tools(dev: Dev) -> None:
    dev.gateway.weather.change("resent_result")
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke(ECHO)
        result = await stream.one("RESULT", req_id)
    assert result["payload"]["ok"] is True
    assert [kind for kind in told(stream, req_id) if kind != "CHUNK"] == ["INVOKE_ACK", "DISCONNECT", "TOOLS", "RESULT"]


async def test_tunnel_cut_cancels_every_call_of_the_agent_unasked(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        first = await waiting_call(dev, stream)
        dev.gateway.weather.change("tunnel_cut")
        second = await dev.wire.invoke("wait")
        await until_told(stream, "DISCONNECT")
        answer, body = await attempt(dev)
        assert (answer.status, body) == (404, error("agent_offline"))
        for req_id in (first, second):
            assert (await stream.one("RESULT", req_id))["payload"] == CANCELED
    assert told(stream) == ["DISCONNECT", "TOOLS"]


async def test_agent_killed_is_never_heard_of_its_call_again(dev: Dev) -> None:
    dev.gateway.weather.change("agent_killed")
    async with dev.wire.subscribed() as stream:
        req_id = await waiting_call(dev, stream)
        await until_told(stream, "DISCONNECT")
        _, listed = await dev.wire.ask("GET", f"{API}/agents")
        dev.gateway.weather.change()
        await until_told(stream, "TOOLS")
        await stream.one("RESULT", await dev.wire.invoke(ECHO))
    assert json.loads(listed) == {"agents": []}
    assert "RESULT" not in told(stream, req_id)


async def test_oversize_result_is_never_published_and_the_agent_flaps(dev: Dev) -> None:
    dev.gateway.weather.change("oversize_result")
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke(ECHO)
        await until_told(stream, "TOOLS", 3)
        dev.gateway.weather.change()
        await eventually(lambda: dev.gateway._tunnels["agent-1"].online, what="the agent being started anew")
        await stream.one("RESULT", await dev.wire.invoke(ECHO, req_id="small"))
    assert told(stream)[:6] == ["DISCONNECT", "TOOLS"] * 3
    assert "RESULT" not in told(stream, req_id)
    assert await stored(dev, req_id) is None


async def test_oversize_invoke_is_accepted_and_drops_the_agent(dev: Dev) -> None:
    dev.gateway.weather.change("oversize_invoke")
    async with dev.wire.subscribed() as stream:
        await dev.wire.invoke(ECHO)
        await until_told(stream, "TOOLS")
    assert [event["type"] for event in stream.events] == ["DISCONNECT", "TOOLS"]
    assert dev.gateway.ledger == []


async def test_gateway_restart_ends_streams_unannounced_and_tells_the_canceled_call_later(dev: Dev) -> None:
    dev.gateway.weather.change("gateway_restart")
    async with dev.wire.subscribed() as stream:
        body = {"req_id": "r", "agent_id": dev.wire.agent, "tool_name": "wait"}
        called = asyncio.create_task(dev.wire.ask("POST", f"{API}/invoke", json=body))
        with pytest.raises((aiohttp.ClientPayloadError, EOFError)):
            await stream.until(lambda _event: False)
        await asyncio.gather(called, return_exceptions=True)
    assert dev.gateway._restarting is not None
    await dev.gateway._restarting
    async with dev.wire.subscribed() as again:
        await again.one("RESULT", await dev.wire.invoke(ECHO))
        assert "DISCONNECT" not in told(stream) + told(again)
        assert await stored(dev, "r") == CANCELED


async def test_forged_result_names_calls_that_nobody_made(dev: Dev) -> None:
    dev.gateway.weather.change("forged_result")
    async with dev.wire.subscribed() as stream:
        req_id = await dev.wire.invoke(ECHO, req_id="x" * 44)
        await stream.one("RESULT", req_id)
    forged = [event["req_id"] for event in stream.events if event["type"] == "RESULT"][:-1]
    assert forged == ["x" * 22 + "A" * 22, "guessed"]
    assert (await stored(dev, "guessed"))["ok"] is True


async def test_stolen_req_id_is_answered_before_the_agent_answers(dev: Dev) -> None:
    dev.gateway.weather.change("stolen_req_id")
    async with dev.wire.subscribed() as stream:
        req_id = await waiting_call(dev, stream)
        result = await stream.one("RESULT", req_id)
    assert result["payload"]["result_json"]["content"][0]["text"] == "forged"
    assert await stored(dev, req_id) == result["payload"]


@pytest.mark.parametrize("path", ["invoke", "cancel"])
async def test_plain_404_is_no_json(dev: Dev, path: str) -> None:
    dev.gateway.weather.change("plain_404")
    answer, body = await attempt(dev, path)
    assert (answer.status, answer.content_type, body) == (404, "text/plain", b"404 page not found\n")
    assert dev.gateway.ledger == []


async def test_no_result_store_is_501(dev: Dev) -> None:
    dev.gateway.weather.change("no_result_store")
    answer, body = await dev.wire.ask("GET", f"{API}/results/r")
    assert (answer.status, body) == (501, error("redis_not_enabled"))


async def test_ack_before_202_and_everything_else_too(dev: Dev) -> None:
    dev.gateway.weather.change("ack_before_202")
    async with dev.wire.subscribed() as stream:
        accepted = asyncio.create_task(attempt(dev, tool_name="wait"))
        await stream.one("INVOKE_ACK", "r")
        await dev.started.wait()
        assert not accepted.done()
        dev.finish.set()
        await stream.one("RESULT", "r")
        answer, _ = await accepted
    assert answer.status == 202


async def test_rounded_integers_in_any_weather(dev: Dev) -> None:
    async with dev.wire.subscribed() as stream:
        for names in ((), ("rounded_integers",)):
            dev.gateway.weather.change(*names)
            result = await stream.one("RESULT", await dev.wire.invoke(ECHO, {"n": 9007199254740993, "f": 1.0}))
            assert result["payload"]["result_json"] == {"echo": {"f": 1, "n": 9007199254740992}}


# --- how weather is made ----------------------------------------------------------------------------------------------


async def test_unknown_weather_is_refused_by_name(dev: Dev) -> None:
    with pytest.raises(ValueError, match="no such weather: hail; there is lost_result,"):
        dev.gateway.weather.change("silent", "hail@agent-1")
    assert dev.gateway.weather.now == frozenset()


async def test_weather_is_told_and_changed_over_http_with_the_token(dev: Dev) -> None:
    refused, _ = await dev.wire.ask("PUT", "/dev/weather", data="silent", headers={})
    changed, _ = await dev.wire.ask("PUT", "/dev/weather", data="silent, late_result@agent-1")
    _, told_now = await dev.wire.ask("GET", "/dev/weather")
    unknown, why = await dev.wire.ask("PUT", "/dev/weather", data="hail")
    assert (refused.status, changed.status, unknown.status) == (401, 200, 400)
    assert told_now == b"late_result@agent-1,silent\n"
    assert why.startswith(b"no such weather: hail; there is ")
    await dev.wire.ask("PUT", "/dev/weather", data="")
    assert dev.gateway.weather.now == frozenset()
