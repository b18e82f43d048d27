"""The Gateway's contract, §9: one test per sentence about Redis mode that its neighbours can show.

Runs against the dev Gateway, or against a real one with the same expectations: as ``test_conformance``, and its Redis
by GATEWAY_REDIS_URL. What only the inside of a Gateway can arrange is in ``test_dev_redis``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.gateway.conftest import API, ECHO, error
from tests.gateway.redis_mode import CHANNEL, Mode, gateway_in_redis_mode, published
from tests.patience import PATIENCE_S, eventually


@pytest.fixture
async def mode(http: aiohttp.ClientSession, redis_url: str) -> AsyncIterator[Mode]:
    async with gateway_in_redis_mode(http, redis_url) as started:
        yield started


async def test_who_holds_an_agent_is_said_for_thirty_seconds_at_a_time(mode: Mode) -> None:
    key = f"agent_online:{mode.wire.agent}"
    told = json.loads(await eventually(lambda: mode.redis.get(key)))
    assert set(told) == {"gateway_id", "conn_session_id", "updated_at"}
    assert told["gateway_id"] == mode.gateway_id
    assert isinstance(told["conn_session_id"], str)
    assert abs(told["updated_at"] - time.time()) < 3600
    assert 0 < await mode.redis.ttl(key) <= 30


async def test_a_result_is_kept_for_a_day_as_the_bytes_that_results_answers(mode: Mode) -> None:
    async with mode.wire.subscribed(agent_id=mode.wire.agent) as stream:
        req_id = await mode.wire.invoke(ECHO, {"text": "<é>"})
        heard = await stream.one("RESULT", req_id)
    stored = await mode.redis.get(f"bridge:result:{req_id}")
    assert json.loads(stored) == heard
    assert 86_000 < await mode.redis.ttl(f"bridge:result:{req_id}") <= 86_400
    answer, body = await mode.wire.ask("GET", f"{API}/results/{req_id}")
    assert (answer.status, body) == (200, stored)


async def test_a_result_that_another_gateway_stored_is_answered(mode: Mode) -> None:
    req_id = secrets.token_hex(8)
    stored = json.dumps({"v": 1, "type": "RESULT", "agent_id": "elsewhere", "req_id": req_id, "payload": {"ok": True}})
    await mode.redis.set(f"bridge:result:{req_id}", stored, ex=60)
    answer, body = await mode.wire.ask("GET", f"{API}/results/{req_id}")
    assert (answer.status, body) == (200, stored.encode())


@pytest.mark.parametrize("kind", ["INVOKE_ACK", "CHUNK", "RESULT"])
async def test_each_event_is_published_on_both_channels_as_subscribers_of_the_stream_see_it(
    mode: Mode, kind: str
) -> None:
    async with (
        published(mode.redis) as all_of_it,
        published(mode.redis, f"{CHANNEL}:agent:{mode.wire.agent}") as of_the_agent,
        mode.wire.subscribed(agent_id=mode.wire.agent) as stream,
    ):
        req_id = await mode.wire.invoke(ECHO)
        said = await all_of_it.until(kind, req_id)
        assert said == await of_the_agent.until(kind, req_id)
        assert json.loads(said) == await stream.one(kind, req_id)


async def test_an_agent_that_only_redis_knows_is_cached_and_neither_called_nor_asked_for_tools(mode: Mode) -> None:
    agent, at = f"elsewhere-{secrets.token_hex(4)}", int(time.time()) - 5
    told = {"gateway_id": "another", "conn_session_id": "s", "updated_at": at}
    await mode.redis.set(f"agent_online:{agent}", json.dumps(told), ex=30)
    _, body = await mode.wire.ask("GET", f"{API}/agents")
    listed = {entry["agent_id"]: entry for entry in json.loads(body)["agents"]}
    assert listed[agent] == {"agent_id": agent, "status": "cached", "last_seen_at": at, "connected_at": at}
    assert listed[mode.wire.agent]["status"] == "online"
    call = {"req_id": "r", "agent_id": agent, "tool_name": ECHO}
    for method, path, more in (("GET", f"agents/{agent}/tools", {}), ("POST", "invoke", {"json": call})):
        answer, body = await mode.wire.ask(method, f"{API}/{path}", **more)
        assert (answer.status, body) == (404, error("agent_offline"))


# --- commands by stream ----------------------------------------------------------------------------------------------


async def test_a_command_is_forwarded_as_it_is_acknowledged_and_never_trimmed(mode: Mode) -> None:
    await eventually(lambda: mode.redis.exists(mode.commands))
    async with mode.wire.subscribed(agent_id=mode.wire.agent) as stream:
        before = await mode.redis.xlen(mode.commands)
        req_id = await mode.command("INVOKE", {"tool": {"name": ECHO, "args": {"a": "b"}}, "stream": {"enabled": True}})
        result = await stream.one("RESULT", req_id)
    assert result["payload"] == {"ok": True, "result_json": {"echo": {"a": "b"}}}
    await eventually(mode.taken)
    assert await mode.redis.xlen(mode.commands) == before + 1


async def test_a_command_may_come_in_fields_instead_of_an_envelope(mode: Mode) -> None:
    await eventually(lambda: mode.redis.exists(mode.commands))
    req_id, payload = secrets.token_hex(8), json.dumps({"tool": {"name": ECHO}})
    async with mode.wire.subscribed(agent_id=mode.wire.agent) as stream:
        fields = {"type": "INVOKE", "agent_id": mode.wire.agent, "req_id": req_id, "payload": payload}
        await mode.redis.xadd(mode.commands, fields)  # type: ignore[arg-type] # redis-py wants the widest dict
        assert (await stream.one("RESULT", req_id))["payload"]["ok"] is True


async def test_a_cancel_by_command_is_answered_by_the_agent(mode: Mode) -> None:
    await eventually(lambda: mode.redis.exists(mode.commands))
    async with mode.wire.subscribed(agent_id=mode.wire.agent) as stream:
        req_id = await mode.command("CANCEL", {})
        assert (await stream.one("CANCEL_ACK", req_id))["payload"]["will_cancel"] is False


async def test_an_invoke_that_the_agent_cannot_parse_is_not_accepted_and_has_no_result(mode: Mode) -> None:
    await eventually(lambda: mode.redis.exists(mode.commands))
    async with mode.wire.subscribed(agent_id=mode.wire.agent) as stream:
        req_id = await mode.command("INVOKE", {"tool": "no object"})
        ack = await stream.one("INVOKE_ACK", req_id)
        after = await mode.wire.invoke(ECHO)
        await stream.one("RESULT", after)
    assert ack["payload"] == {"accepted": False, "reason": "invalid_payload"}
    assert [event["type"] for event in stream.events if event.get("req_id") == req_id] == ["INVOKE_ACK"]


@pytest.mark.parametrize("kind", ["INVOKE", "CANCEL"])
async def test_a_command_for_an_agent_that_is_away_fails_on_pub_sub_only(mode: Mode, kind: str) -> None:
    await eventually(lambda: mode.redis.exists(mode.commands))
    async with (
        published(mode.redis) as all_of_it,
        published(mode.redis, f"{CHANNEL}:agent:nobody") as of_the_agent,
        mode.wire.subscribed() as stream,
    ):
        req_id = await mode.command(kind, {"tool": {"name": ECHO}}, agent="nobody")
        said = json.loads(await all_of_it.until("INVOKE_FAILED", req_id))
        assert json.loads(await of_the_agent.until("INVOKE_FAILED", req_id)) == said
        assert (said["agent_id"], said["payload"]) == ("nobody", {"error": "agent_offline"})
        after = await mode.wire.invoke(ECHO)
        await stream.one("RESULT", after)
        assert not [event for event in stream.events if event.get("req_id") == req_id]
    answer, body = await mode.wire.ask("GET", f"{API}/results/{req_id}")
    assert (answer.status, body) == (404, error("not_found"))


@pytest.mark.parametrize("envelope", ["not json", "[]", '{"v":0,"type":"INVOKE","agent_id":"a"}', '{"v":1}'])
async def test_a_malformed_command_is_acknowledged_without_a_word(mode: Mode, envelope: str) -> None:
    await eventually(lambda: mode.redis.exists(mode.commands))
    await mode.redis.xadd(mode.commands, {"envelope": envelope})
    await eventually(mode.taken)
    async with mode.wire.subscribed(agent_id=mode.wire.agent) as stream:  # and the next one is served
        req_id = await mode.command("INVOKE", {"tool": {"name": ECHO}})
        async with asyncio.timeout(PATIENCE_S):
            await stream.one("RESULT", req_id)
