"""The Gateways' own Redis over a real server: what stands there, what is published, and every way of not knowing."""

import asyncio

import pytest
from redis.asyncio import Redis

from gateway_client import GatewayRedis, Unavailable
from tests.patience import eventually

RESULT = b'{"v":1,"type":"RESULT","agent_id":"a","req_id":"r%d","ts":7,"payload":{"ok":true}}'


@pytest.fixture
async def server(redis_url):
    connection = Redis.from_url(redis_url)
    yield connection
    await connection.aclose()


@pytest.fixture
async def registry(redis_url):
    opened = GatewayRedis(redis_url)
    yield opened
    await opened.aclose()


@pytest.mark.parametrize(
    ("stands", "holder"),
    [
        (b'{"gateway_id":"gw-1","conn_session_id":"s","updated_at":1}', "gw-1"),
        (b'{"gateway_id":""}', None),
        (b'["gw-1"]', None),
        (None, None),
    ],
)
async def test_who_holds_an_agent(server, registry, stands, holder):
    if stands is not None:
        await server.set("agent_online:a", stands)
    assert await registry.holder("a") == holder


async def test_what_is_no_json_is_unavailable(server, registry):
    await server.set("agent_online:a", b"{")
    await server.set("bridge:result:r", b"{")
    for question in (registry.holder("a"), registry.result("r")):
        with pytest.raises(Unavailable) as caught:
            await question
        assert caught.value.code == "bad_answer"


async def test_a_server_that_is_not_there_is_unavailable(redis_url):
    registry = GatewayRedis("redis://127.0.0.1:1/0")
    for question in (registry.holder("a"), registry.result("r"), registry.events().__aenter__()):
        with pytest.raises(Unavailable) as caught:
            await question
        assert caught.value.code == "redis_error"
    await registry.aclose()


def test_a_url_that_is_none_is_refused():
    with pytest.raises(ValueError):
        GatewayRedis("http://localhost")


async def test_once_entered_no_event_passes_unseen_and_they_come_in_order_once(server, registry):
    async with registry.events() as events:
        for number in range(1200):
            await server.publish("bridge:evt", RESULT % number)
            await server.publish("bridge:evt:agent:a", RESULT % number)
        seen = []
        async for batch in events:
            assert batch
            seen += batch
            if len(seen) >= 1200:
                break
    assert [envelope.req_id for envelope in seen] == [f"r{number}" for number in range(1200)]
    assert await server.pubsub_numsub("bridge:evt") == [(b"bridge:evt", 0)]


async def test_what_is_no_envelope_is_counted_and_passed_over(server, registry):
    async with registry.events() as events:
        await server.publish("bridge:evt", b"not json")
        await server.publish("bridge:evt", RESULT % 1)
        assert [envelope.req_id for envelope in await anext(events)] == ["r1"]
        assert events.malformed == 1


async def test_a_connection_that_was_killed_ends_the_stream_and_is_never_mended_in_silence(server, registry):
    async with registry.events() as events:
        (mine,) = await server.client_list(_type="pubsub")
        waiting = asyncio.create_task(anext(events))
        await asyncio.sleep(0)
        await server.client_kill_filter(_id=mine["id"])
        with pytest.raises(Unavailable):
            await waiting


async def test_silence_is_asked_about_and_an_answer_is_enough(server, registry, monkeypatch):
    """Silence comes quickly here, but an answer may take its time."""
    async with registry.events(silence_timeout_s=20) as events:
        get_message, ping, asked = events._pubsub.get_message, events._pubsub.ping, []

        async def soon_over(**named):
            return await get_message(timeout=0.05 if named["timeout"] == 10 else named["timeout"])

        async def counted():
            asked.append("?")
            await ping()

        monkeypatch.setattr(events._pubsub, "get_message", soon_over)
        monkeypatch.setattr(events._pubsub, "ping", counted)
        waiting = asyncio.create_task(anext(events))
        await eventually(lambda: len(asked) >= 3, what="silence, three times")
        assert not waiting.done()
        await server.publish("bridge:evt", RESULT % 1)
        assert [envelope.req_id for envelope in await waiting] == ["r1"]


async def test_a_server_that_hangs_is_noticed(server, registry):
    async with registry.events() as events:
        await server.client_pause(5000, all=True)
        events._silence_timeout_s = 0.2
        try:
            with pytest.raises(Unavailable) as caught:
                await asyncio.wait_for(anext(events), 4)
            assert caught.value.code in ("silent", "redis_error")
        finally:
            await server.client_unpause()


async def test_a_version_of_a_token_only_rises(server, registry):
    for given, stands in ((1, 1), (3, 3), (2, 3), (3, 3), (10, 10), (9, 10)):
        assert await registry.raise_token_version("ann", "laptop", given) == stands
    assert await server.get("bridge:agent_token_version:ann:laptop") == b'{"version":10}'
    assert await registry.token_versions([("ann", "laptop"), ("bob", "laptop"), ("ann:x", "y")]) == [10, 0, 0]


async def test_versions_are_read_and_raised_over_what_others_wrote(server, registry):
    entries = {b'{"version":4,"expires_at":1}': 4, b"7": 0, b"{": 0, b'{"version":"4"}': 0, b'{"version":4e9}': 0}
    for entry, version in entries.items():
        await server.set("bridge:agent_token_version:ann:laptop", entry)
        assert await registry.token_versions([("ann", "laptop")]) == [version]
        assert await registry.raise_token_version("ann", "laptop", 2) == max(2, version)


async def test_where_no_version_can_be_told_it_is_unavailable():
    registry = GatewayRedis("redis://127.0.0.1:1/0")
    for question in (registry.raise_token_version("a", "b", 1), registry.token_versions([("a", "b")])):
        with pytest.raises(Unavailable):
            await question
    await registry.aclose()
