"""Redis mode from the inside: two Gateways over one Redis, agents that leave and move, a Redis that goes away.

Sentences of the contract's §9 that a client cannot arrange, so they are shown at the dev Gateway alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import aiohttp
import pytest
from redis.asyncio import Redis

from daemon.dev.embedded import EmbeddedValkey
from daemon.dev.gateway_redis import RedisMode
from tests.gateway.conftest import API, ECHO, dev_gateway, error
from tests.gateway.redis_mode import Mode, published
from tests.patience import eventually

KEY = "agent_online:agent-1"


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def server() -> Iterator[EmbeddedValkey]:
    """A Valkey of this test's own, to be stopped."""
    with EmbeddedValkey() as started:
        yield started


async def test_the_key_goes_with_the_connection_that_made_it_and_with_no_other(
    http: aiohttp.ClientSession, redis_url: str, redis: Redis
) -> None:
    async with dev_gateway(http, redis=RedisMode(redis_url, "a")) as dev:
        await eventually(lambda: redis.exists(KEY))
        await dev.gateway.disconnect("agent-1")

        async def gone() -> bool:
            return not await redis.exists(KEY)

        await eventually(gone)
        agent = dev.gateway._agents[0]
        await dev.gateway.connect(agent)
        await eventually(lambda: redis.exists(KEY))
        await redis.set(KEY, '{"gateway_id":"b","conn_session_id":"later","updated_at":1}')
        async with published(redis) as heard:
            await dev.gateway.disconnect("agent-1")
            await dev.gateway.connect(agent)  # what was owed to the old connection is done before this one's first word
            await heard.until("INVOKE_ACK", await dev.wire.invoke(ECHO))
        assert json.loads(await redis.get(KEY))["gateway_id"] == "a"


async def test_the_key_is_renewed_while_the_agent_is_idle_and_outlives_its_gateway(
    http: aiohttp.ClientSession, redis_url: str, redis: Redis
) -> None:
    async with dev_gateway(http, redis=RedisMode(redis_url, "a", refresh_s=0.05)):
        await eventually(lambda: redis.exists(KEY))
        await redis.delete(KEY)
        await eventually(lambda: redis.exists(KEY))
    assert await redis.exists(KEY)


async def test_streams_and_calls_are_the_gateways_own_and_results_are_everybodys(
    http: aiohttp.ClientSession, redis_url: str, redis: Redis
) -> None:
    async def held_by_b() -> bool:
        return json.loads(await redis.get(KEY) or "{}").get("gateway_id") == "b"

    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(dev_gateway(http, redis=RedisMode(redis_url, "a")))
        b = await stack.enter_async_context(dev_gateway(http, redis=RedisMode(redis_url, "b")))
        agent = b.gateway._agents[0]
        await b.gateway.disconnect("agent-1")

        async def left() -> bool:
            return not await held_by_b()

        await eventually(left)
        at_a = await stack.enter_async_context(a.wire.subscribed())
        at_b = await stack.enter_async_context(b.wire.subscribed())
        req_id = await a.wire.invoke(ECHO)
        await at_a.one("RESULT", req_id)
        answer, _ = await b.wire.ask("GET", f"{API}/results/{req_id}")
        assert answer.status == 200
        _, body = await b.wire.ask("GET", f"{API}/agents")
        assert [entry["status"] for entry in json.loads(body)["agents"]] == ["cached"]
        call = {"req_id": "r", "agent_id": "agent-1", "tool_name": ECHO}
        answer, body = await b.wire.ask("POST", f"{API}/invoke", json=call)
        assert (answer.status, body) == (404, error("agent_offline"))
        await b.gateway.connect(agent)
        await at_b.one("RESULT", await b.wire.invoke(ECHO))
        assert req_id not in {event.get("req_id") for event in at_b.events}


async def test_while_redis_is_away_calls_work_events_are_late_and_no_result_is_stored_until_the_agent_comes_again(
    http: aiohttp.ClientSession, server: EmbeddedValkey
) -> None:
    async with (
        dev_gateway(http, redis=RedisMode(server.url, "a")) as dev,
        dev.wire.subscribed() as stream,
    ):
        async with Redis.from_url(server.url) as redis:
            await eventually(lambda: redis.exists(KEY))
        await asyncio.to_thread(server.stop)
        began = asyncio.get_running_loop().time()
        req_id = await dev.wire.invoke(ECHO)
        await stream.one("RESULT", req_id)
        assert asyncio.get_running_loop().time() - began > 0.3  # one event waits for several tries at Redis
        answer, body = await dev.wire.ask("GET", f"{API}/results/{req_id}")
        assert (answer.status, body) == (502, error("redis_error"))
        answer, _ = await dev.wire.ask("GET", f"{API}/agents")
        assert answer.status == 200
        await asyncio.to_thread(server.start)
        answer, body = await dev.wire.ask("GET", f"{API}/results/{req_id}")
        assert (answer.status, body) == (404, error("not_found"))
        agent = dev.gateway._agents[0]
        await dev.gateway.disconnect("agent-1")
        async with Redis.from_url(server.url) as redis, published(redis) as heard:
            await dev.gateway.connect(agent)
            await heard.until("RESULT", req_id)
        answer, _ = await dev.wire.ask("GET", f"{API}/results/{req_id}")
        assert answer.status == 200


async def test_it_starts_without_its_redis_and_takes_commands_once_that_is_there(
    http: aiohttp.ClientSession, server: EmbeddedValkey
) -> None:
    await asyncio.to_thread(server.stop)
    async with dev_gateway(http, redis=RedisMode(server.url, "a")) as dev:
        answer, _ = await dev.wire.ask("GET", f"{API}/agents")
        assert answer.status == 200
        await asyncio.to_thread(server.start)
        async with Redis.from_url(server.url) as redis, dev.wire.subscribed() as stream:
            mode = Mode(dev.wire, redis, "a")
            await eventually(lambda: redis.exists(mode.commands))
            await stream.one("RESULT", await mode.command("INVOKE", {"tool": {"name": ECHO}}))


async def test_commands_from_before_the_first_start_of_an_id_are_never_run(
    http: aiohttp.ClientSession, redis_url: str, redis: Redis
) -> None:
    early = json.dumps({"v": 1, "type": "INVOKE", "agent_id": "agent-1", "req_id": "early", "payload": {"tool": {}}})
    await redis.xadd("bridge:cmd:a", {"envelope": early})
    async with dev_gateway(http, redis=RedisMode(redis_url, "a")) as dev, dev.wire.subscribed() as stream:
        mode = Mode(dev.wire, redis, "a")
        await eventually(lambda: redis.xinfo_groups(mode.commands))
        await stream.one("RESULT", await mode.command("INVOKE", {"tool": {"name": ECHO}}))
    assert "early" not in {event.get("req_id") for event in stream.events}


async def test_after_a_flush_commands_are_ignored_until_the_gateway_starts_again(
    http: aiohttp.ClientSession, redis_url: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with dev_gateway(http, redis=RedisMode(redis_url, "a")) as dev:
        mode = Mode(dev.wire, redis, "a")
        await eventually(lambda: redis.exists(mode.commands))
        await redis.flushall()
        await eventually(lambda: "commands are ignored" in caplog.text)
        await mode.command("INVOKE", {"tool": {"name": ECHO}})
        async with dev.wire.subscribed() as stream:
            await stream.one("RESULT", await dev.wire.invoke(ECHO))  # HTTP goes on
        assert [execution.tool_name for execution in dev.gateway.ledger] == [ECHO]
