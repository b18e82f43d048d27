"""Several Gateways as one: each call goes to the one that holds the agent, whatever the directory believed before."""

import asyncio
from contextlib import aclosing

import pytest
import redis

from gateway_client import (
    Envelope,
    GatewayClient,
    GatewayRedis,
    Invocation,
    MaybeSent,
    NotSent,
    ResultsUnsupported,
    Unavailable,
)
from gateway_client.directory import LIST_TIMEOUT_S, REFRESH_S
from tests.gateway_client.sites import STORED, Site, several
from tests.patience import PATIENCE_S, eventually
from tests.stopwatch import Stopwatch

CALL = Invocation(req_id="r1", agent_id="agent-1", tool_name="t", arguments={}, timeout_ms=0, stream=False)
ENVELOPE = Envelope(type="RESULT", agent_id="agent-1", req_id="r1", ts=7, payload={"ok": True})


@pytest.fixture
def agents(redis_url):
    """The keys `agent_online:*` of a real server, written as Gateways do."""
    with redis.Redis.from_url(redis_url) as connection:

        def says(agent_id, gateway_id):
            connection.set(f"agent_online:{agent_id}", f'{{"gateway_id":"{gateway_id}","updated_at":1}}')

        yield says


async def test_one_gateway_alone_is_never_asked_who_is_there(serve):
    a = Site({"agent-1": 1})
    async with aclosing(await several(serve, a=a)) as gateways:
        assert await gateways.invoke(CALL) == "a"
        assert gateways.directory.known("anybody") == "a"
        await asyncio.wait_for(gateways.directory.run(), PATIENCE_S)  # nothing to keep up to date
    assert [request.line.split()[0] for request in a.server.requests] == ["POST"]


async def test_a_call_and_its_cancel_go_to_the_gateway_that_lists_the_agent_as_online(serve):
    a, b = Site({"agent-2": 1}, cached={"agent-1"}), Site({"agent-1": 1})
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        assert await gateways.invoke(CALL) == "b"
        assert await gateways.cancel("r1", "agent-1") == "b"
        assert gateways.directory.known("agent-2") == "a"
    assert (a.asked("invoke"), b.asked("invoke"), b.asked("cancel")) == (0, 1, 1)
    assert (a.asked("agents"), b.asked("agents")) == (1, 1)


async def test_the_tools_of_an_agent_are_asked_for_where_it_is_also_after_it_moved(serve):
    a, b = Site({"agent-1": 1}), Site()
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        assert [tool.name for tool in await gateways.tools("agent-1")] == ["t"]
        b.agents, a.agents = {"agent-1": 2}, {}
        assert [tool.name for tool in await gateways.tools("agent-1")] == ["t"]
        with pytest.raises(NotSent) as caught:
            await gateways.tools("nobody")
    assert caught.value.code == "agent_offline"
    assert (a.asked("tools"), b.asked("tools")) == (2, 1)


async def test_of_two_that_list_the_agent_the_later_connection_is_called(serve):
    a, b = Site({"agent-1": 5}), Site({"agent-1": 7})
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        assert await gateways.invoke(CALL) == "b"


async def test_an_agent_that_moved_is_found_within_the_same_call(serve):
    a, b = Site({"agent-1": 1}), Site()
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        assert await gateways.invoke(CALL) == "a"
        b.agents, a.agents = {"agent-1": 2}, {}
        asked = []
        assert await gateways.invoke(CALL, may_send=lambda: not asked.append(True)) == "b"
    assert len(asked) == 2  # the permit is asked before each write
    assert (a.asked("invoke"), b.asked("invoke")) == (2, 1)


async def test_an_agent_of_a_gateway_that_died_is_found_where_it_is_now(serve, refused_url):
    b = Site({"agent-1": 1})
    async with aclosing(await several(serve, b=b, a=GatewayClient(refused_url))) as gateways:
        await gateways.invoke(CALL)
        b.agents = {}
        with pytest.raises(NotSent) as caught:
            await gateways.invoke(CALL)
        assert caught.value.code == "gateway_unavailable"  # it may be at the one that does not answer
        b.agents = {"agent-1": 2}
        assert await gateways.invoke(CALL) == "b"


async def test_an_agent_on_no_gateway_is_offline_and_nothing_is_sent(serve):
    a, b = Site(), Site({"agent-2": 1})
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        with pytest.raises(NotSent) as caught:
            await gateways.invoke(CALL)
    assert caught.value.code == "agent_offline"
    assert a.asked("invoke") == b.asked("invoke") == 0


async def test_a_404_of_the_only_one_that_lists_the_agent_is_the_answer(serve):
    a, b = Site({"agent-1": 1}, ghosts={"agent-1"}), Site()
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        with pytest.raises(NotSent) as caught:
            await gateways.invoke(CALL)
    assert (caught.value.code, caught.value.gateway) == ("agent_offline", "a")
    assert (a.asked("invoke"), b.asked("invoke")) == (1, 0)


async def test_a_call_that_may_have_been_sent_is_never_tried_elsewhere(serve):
    async def broken(gateway, peer):
        while request := await gateway.take(peer):
            if request.line.startswith("GET"):
                await peer.answer(200, {"agents": [{"agent_id": "agent-1", "status": "online", "connected_at": 5}]})
            else:
                await peer.answer(502, {"error": "send_failed"})

    server, b = await serve(broken), Site({"agent-1": 0})
    async with aclosing(await several(serve, a=GatewayClient(server.url), b=b)) as gateways:
        with pytest.raises(MaybeSent) as caught:
            await gateways.invoke(CALL)
    assert caught.value.gateway == "a"
    assert sum(request.line.startswith("POST") for request in server.requests) == 1
    assert b.asked("invoke") == 0


async def test_a_gateway_that_hangs_delays_nobody_whose_place_is_known(serve):
    a, b = Site({"agent-2": 1}), Site({"agent-1": 1})
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        await gateways.invoke(CALL)
        a.silent = True
        watch = asyncio.create_task(gateways.directory.run())
        await eventually(lambda: a.asked("agents") == 2)
        with Stopwatch() as taken:
            assert await gateways.invoke(CALL) == "b"
            assert taken.seconds < LIST_TIMEOUT_S / 2
        watch.cancel()


async def test_the_directory_looks_again_when_it_is_told_to_doubt(serve):
    a, b = Site({"agent-1": 1}), Site()
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        watch = asyncio.create_task(gateways.directory.run())
        await eventually(lambda: gateways.directory.known("agent-1") == "a")
        b.agents, a.agents = {"agent-1": 2}, {}
        gateways.directory.suspect("agent-1")
        gateways.directory.suspect("nobody-we-know")
        with Stopwatch() as taken:
            await eventually(lambda: gateways.directory.known("agent-1") == "b")
            assert taken.seconds < REFRESH_S - 1
        assert gateways.directory.known("nobody-we-know") is None
        watch.cancel()


# --- with the Gateways' Redis ----------------------------------------------------------------------------------------


async def test_redis_says_which_gateway_and_no_list_is_asked_for(serve, redis_url, agents):
    agents("agent-1", "b")
    a, b = Site(), Site({"agent-1": 1})
    async with aclosing(await several(serve, redis=GatewayRedis(redis_url), a=a, b=b)) as gateways:
        assert await gateways.invoke(CALL) == "b"
    assert a.asked("agents") == b.asked("agents") == 0


async def test_ids_that_our_settings_do_not_know_are_learned_from_the_lists_and_forgotten_when_wrong(
    serve, redis_url, agents
):
    agents("agent-1", "host-5f3a")
    agents("agent-2", "host-5f3a")
    a, b = Site({}), Site({"agent-1": 1, "agent-2": 1})
    async with aclosing(await several(serve, redis=GatewayRedis(redis_url), a=a, b=b)) as gateways:
        assert await gateways.invoke(CALL) == "b"
        assert await gateways.cancel("r9", "agent-2") == "b"
        assert b.asked("agents") == 1
        a.agents, b.agents = b.agents, {}  # the same id is another Gateway's now
        gateways.directory.suspect("agent-1")
        assert await gateways.invoke(CALL) == "a"


async def test_a_key_that_a_killed_gateway_left_behind_costs_one_try(serve, redis_url, agents, refused_url):
    agents("agent-1", "dead")
    b = Site({"agent-1": 1})
    dead = GatewayClient(refused_url)
    async with aclosing(await several(serve, redis=GatewayRedis(redis_url), dead=dead, b=b)) as gateways:
        assert await gateways.invoke(CALL) == "b"


@pytest.mark.parametrize("missing", ["flushed", "away"])
async def test_without_the_keys_the_lists_decide(serve, redis_url, missing):
    where = redis_url if missing == "flushed" else "redis://127.0.0.1:1/0"
    a, b = Site(), Site({"agent-1": 1})
    async with aclosing(await several(serve, redis=GatewayRedis(where), a=a, b=b)) as gateways:
        assert await gateways.invoke(CALL) == "b"
        assert await gateways.invoke(CALL) == "b"
    assert b.asked("agents") == 1


async def test_an_agent_of_a_gateway_that_is_none_of_ours_is_offline_and_the_words_say_why(serve, redis_url, agents):
    agents("agent-1", "c")
    async with aclosing(await several(serve, redis=GatewayRedis(redis_url), a=Site(), b=Site())) as gateways:
        with pytest.raises(NotSent) as caught:
            await gateways.invoke(CALL)
    assert caught.value.code == "agent_offline"
    assert "connected to c, which is none of ours" in str(caught.value)


# --- results ---------------------------------------------------------------------------------------------------------

NO_STORE = (501, {"error": "redis_not_enabled"})
NOT_YET = (404, {"error": "not_found"})
BROKEN = (502, {"error": "redis_error"})
HERE = (200, STORED)


@pytest.mark.parametrize(
    ("at_a", "at_b", "answer"),
    [
        (HERE, NOT_YET, ENVELOPE),
        (BROKEN, HERE, ENVELOPE),
        (NO_STORE, HERE, ENVELOPE),
        (NOT_YET, NOT_YET, None),
        (NOT_YET, NO_STORE, None),
        (NOT_YET, BROKEN, Unavailable),
        (NO_STORE, BROKEN, Unavailable),
        (NO_STORE, NO_STORE, ResultsUnsupported),
    ],
)
async def test_a_result_is_asked_for_everywhere_and_none_means_that_everybody_was_asked(serve, at_a, at_b, answer):
    a, b = Site(results=at_a), Site(results=at_b)
    async with aclosing(await several(serve, a=a, b=b)) as gateways:
        if answer in (Unavailable, ResultsUnsupported):
            with pytest.raises(answer):
                await gateways.result("r1")
        else:
            assert await gateways.result("r1") == answer


async def test_a_result_is_not_held_up_by_a_gateway_that_hangs(serve):
    async with aclosing(await several(serve, a=Site(silent=True), b=Site(results=HERE))) as gateways:
        assert await asyncio.wait_for(gateways.result("r1"), PATIENCE_S) == ENVELOPE


async def test_a_result_is_read_from_redis_and_no_gateway_is_asked(serve, redis_url):
    a = Site(results=BROKEN)
    async with aclosing(await several(serve, redis=GatewayRedis(redis_url), a=a, b=Site())) as gateways:
        assert await gateways.result("r1") is None
        with redis.Redis.from_url(redis_url) as connection:
            connection.set(
                "bridge:result:r1",
                b'{"v":1,"type":"RESULT","agent_id":"agent-1","req_id":"r1","ts":7,"payload":{"ok":true}}',
            )
        assert await gateways.result("r1") == ENVELOPE
    assert a.asked("results") == 0


@pytest.mark.parametrize(("at_a", "at_b", "answer"), [(BROKEN, HERE, ENVELOPE), (BROKEN, NOT_YET, None)])
async def test_when_redis_does_not_answer_one_gateway_that_does_speaks_for_all(serve, at_a, at_b, answer):
    away = GatewayRedis("redis://127.0.0.1:1/0")
    async with aclosing(await several(serve, redis=away, a=Site(results=at_a), b=Site(results=at_b))) as gateways:
        assert await gateways.result("r1") == answer
