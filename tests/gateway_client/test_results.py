"""Stored RESULTs of many calls at once: cheap, bounded, and silent about what could not be learnt."""

from contextlib import aclosing

import pytest
import redis

from gateway_client import Envelope, GatewayClient, GatewayRedis
from tests.gateway_client.sites import STORED, Site, several
from tests.stopwatch import Stopwatch

NO_STORE = (501, {"error": "redis_not_enabled"})
NOT_YET = (404, {"error": "not_found"})
BROKEN = (502, {"error": "redis_error"})
HERE = (200, STORED)
ENVELOPE = Envelope(type="RESULT", agent_id="agent-1", req_id="r1", ts=7, payload={"ok": True})


@pytest.mark.parametrize(
    ("at_a", "at_b", "answer"),
    [
        (HERE, NOT_YET, {"r1": ENVELOPE}),
        (BROKEN, HERE, {"r1": ENVELOPE}),
        (NOT_YET, NOT_YET, {"r1": None}),
        (NOT_YET, NO_STORE, {"r1": None}),
        (NO_STORE, NO_STORE, {"r1": None}),
        (NOT_YET, BROKEN, {}),
        (NO_STORE, BROKEN, {}),
        ((200, {"v": 0}), HERE, {"r1": ENVELOPE}),
        ((200, {"v": 0}), NOT_YET, {}),
    ],
)
async def test_every_gateway_is_asked_and_what_one_did_not_say_is_not_known(serve, at_a, at_b, answer):
    async with aclosing(await several(serve, a=Site(results=at_a), b=Site(results=at_b))) as gateways:
        assert await gateways.results.of(["r1"], within_s=5) == answer


async def test_many_are_asked_over_a_few_connections_that_stay(serve):
    a = Site()
    async with aclosing(await several(serve, a=a)) as gateways:
        calls = [f"r{number}" for number in range(100)]
        assert await gateways.results.of(calls, within_s=5) == dict.fromkeys(calls)
        assert await gateways.results.of(calls, within_s=5) == dict.fromkeys(calls)
        assert a.asked("results/") == 200
        assert len(gateways.clients["a"]._reader._open) <= 8


async def test_a_gateway_that_stores_no_results_is_not_asked_again_for_a_while(serve):
    a = Site(results=NO_STORE)
    async with aclosing(await several(serve, a=a)) as gateways:
        assert await gateways.results.of(["r1"], within_s=5) == {"r1": None}
        assert await gateways.results.of(["r2", "r3"], within_s=5) == {"r2": None, "r3": None}
        assert a.asked("results") == 1


async def test_a_gateway_that_is_away_is_not_asked_about_the_rest(serve):
    a = Site(results=BROKEN)
    async with aclosing(await several(serve, a=a)) as gateways:
        assert await gateways.results.of([f"r{number}" for number in range(100)], within_s=5) == {}
        assert a.asked("results") <= 8


async def test_a_gateway_that_hangs_costs_no_more_than_the_time_given(serve):
    async with aclosing(await several(serve, a=Site(silent=True))) as gateways:
        with Stopwatch() as watch:
            assert await gateways.results.of(["r1", "r2"], within_s=0.3) == {}
            assert watch.seconds < 1.5, "by itself it would wait for 2 s"


async def test_without_any_gateway_to_reach_nothing_is_known(refused_url, serve):
    async with aclosing(await several(serve, a=GatewayClient(refused_url))) as gateways:
        assert await gateways.results.of(["r1"], within_s=5) == {}


async def test_a_large_result_is_found_all_the_same(serve):
    large = STORED | {"payload": {"ok": True, "result_json": "x" * (2 * 1024 * 1024)}}
    async with aclosing(await several(serve, a=Site(results=(200, large)))) as gateways:
        found = (await gateways.results.of(["r1"], within_s=5))["r1"]
    assert found is not None
    assert found.payload == large["payload"]


async def test_the_token_goes_along(serve):
    a = Site()
    async with aclosing(await several(serve, a=a)) as gateways:
        async with GatewayClient(f"{a.url}/p", "secret") as client:
            assert await client.glance("a/ü") is None
        assert gateways.clients
    assert a.server is not None
    assert a.server.requests[0].line == "GET /p/internal/bridge/results/a%2F%C3%BC HTTP/1.1"
    assert a.server.requests[0].headers["x-internal-token"] == "secret"


async def test_where_there_is_a_redis_it_is_asked_alone(serve, redis_url):
    a, calls = Site(results=HERE), [f"q{number}" for number in range(250)]
    async with aclosing(await several(serve, redis=GatewayRedis(redis_url), a=a)) as gateways:
        with redis.Redis.from_url(redis_url) as connection:
            told = b'{"v":1,"type":"RESULT","agent_id":"agent-1","req_id":"q201","ts":7,"payload":{"ok":true}}'
            connection.mset({"bridge:result:q201": told, "bridge:result:q3": b"no envelope"})
        found = await gateways.results.of(calls, within_s=5)
    assert found.keys() == {*calls} - {"q3"}
    assert [call for call, stored in found.items() if stored is not None] == ["q201"]
    assert a.asked("results") == 0


@pytest.mark.parametrize(("at_a", "at_b"), [(BROKEN, HERE), (HERE, BROKEN)])
async def test_when_redis_does_not_answer_the_gateways_are_asked(serve, at_a, at_b):
    away = GatewayRedis("redis://127.0.0.1:1/0")
    async with aclosing(await several(serve, redis=away, a=Site(results=at_a), b=Site(results=at_b))) as gateways:
        assert await gateways.results.of(["r1"], within_s=5) == {"r1": ENVELOPE}


async def test_when_redis_does_not_answer_one_gateway_that_does_speaks_for_all(serve):
    away = GatewayRedis("redis://127.0.0.1:1/0")
    async with aclosing(await several(serve, redis=away, a=Site(results=BROKEN), b=Site())) as gateways:
        assert await gateways.results.of(["r1"], within_s=5) == {"r1": None}
