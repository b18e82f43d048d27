"""Tokens of agents: what is in them, who gets one, and that the Gateway's Redis learns which versions are good."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
import redis.asyncio

from daemon.dev.embedded import EmbeddedValkey
from daemon.dev.gateway import DevGateway
from daemon.dev.gateway_redis import RedisMode
from daemon.dev.handshake import TokenRefused
from daemon.store import agents
from daemon.store.agents import TokenVersion
from tests.api.conftest import AGENT_SECRET
from tests.api.harness import AGENT, Answer, Stack, Tools, stack
from tests.api.people import introduce
from tests.api.test_agents import AGENTS, bound, granted, seen
from tests.patience import eventually

TOKEN = "/v1/bridge/agent-token"


async def minted(stack: Stack, sub: str = "ann", **said: Any) -> Any:
    made = await _asked(stack, sub, **said)
    assert made.status == 200, made.body
    return made.body


async def _asked(stack: Stack, sub: str = "ann", **said: Any) -> Answer:
    return await stack.ask("POST", TOKEN, sub=sub, json=said)


@pytest.fixture
async def mirrored(strict_database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    """As ``strict``, where the Gateways have a Redis, which is ours: their keys have other names."""
    more = {"agent_token_secret": AGENT_SECRET, "gateway_redis_url": redis_url}
    async with stack(strict_database, redis_url, redis_prefix, **more) as opened:
        yield introduce(opened)


@pytest.fixture
async def keys(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(redis_url) as opened:
        yield opened


async def _version(keys: redis.asyncio.Redis, sub: str, agent_id: str) -> int | None:
    told: Any = await keys.get(f"bridge:agent_token_version:{sub}:{agent_id}")
    return None if told is None else json.loads(told)["version"]


async def test_a_token_says_what_the_gateway_asks_of_it(strict: Stack) -> None:
    made = await minted(strict, agent_id="laptop")
    claims = jwt.decode(made["token"], AGENT_SECRET, algorithms=["HS256"])
    now = int(time.time())
    assert {name: claims[name] for name in ("type", "agent_id", "sub", "ver", "iss")} == {
        "type": "bridge_agent",
        "agent_id": "laptop",
        "sub": "ann",
        "ver": 1,
        "iss": "runwarden",
    }
    assert abs(claims["iat"] - now) <= 5
    assert claims["exp"] - claims["iat"] == strict.settings.gateway.agent_token_ttl_s
    assert (made["agent_id"], made["version"], made["reset"]) == ("laptop", 1, False)
    assert (await seen(strict, "ann"))["laptop"]["may"] == ["owner"]


async def test_an_id_is_made_for_who_names_none(strict: Stack) -> None:
    ids = {(await minted(strict))["agent_id"] for _ in range(3)}
    assert len(ids) == 3
    assert ids == set(await seen(strict, "ann"))


async def test_asking_again_ends_nothing_and_a_reset_ends_every_older_token(strict: Stack) -> None:
    versions = [
        (await minted(strict, agent_id="laptop", **said))["version"]
        for said in ({}, {}, {"reset": True}, {}, {"reset": True}, {"reset": False})
    ]
    assert versions == [1, 1, 2, 2, 3, 3]
    version = await strict.sql("SELECT version FROM authority_version")
    await minted(strict, agent_id="laptop", reset=True)
    assert await strict.sql("SELECT version FROM authority_version") == version


async def test_of_two_who_ask_at_once_for_a_new_id_one_owns_it(strict: Stack) -> None:
    for number in range(5):
        names = ["ann", "bob", "gus"] * 2
        answers = await asyncio.gather(*(_asked(strict, sub, agent_id=f"new-{number}") for sub in names))
        won = {sub for sub, answer in zip(names, answers, strict=True) if answer.status == 200}
        lost = {answer.body["code"] for answer in answers if answer.status != 200}
        assert (len(won), lost) == (1, {"agent_taken"})
        assert (await seen(strict, "root"))[f"new-{number}"]["owner"] in won


async def test_another_ones_agent_is_taken_even_for_who_may_use_it_and_for_admins(strict: Stack) -> None:
    await bound(strict, "laptop")
    await granted(strict, "user:bob", "use", "laptop")
    for sub in ("bob", "gus", "root"):
        refused = await _asked(strict, sub, agent_id="laptop")
        assert (refused.status, refused.body["code"]) == (409, "agent_taken")
    assert (await minted(strict, agent_id="laptop"))["version"] == 1
    told = await strict.sql("SELECT actor, action, code FROM audit_log WHERE outcome = 'refused' ORDER BY id")
    assert [tuple(row) for row in told] == [
        (sub, "agent_token.minted", "agent_taken") for sub in ("bob", "gus", "root")
    ]


async def test_an_agent_that_runs_unbound_is_not_taken_by_naming_it(strict: Stack) -> None:
    refused = await _asked(strict, agent_id=AGENT)
    assert (refused.status, refused.body["code"]) == (409, "agent_taken")
    assert (await minted(strict, "root", agent_id=AGENT))["version"] == 1
    await strict.gateway.stop()
    strict.context.reach._asked_at = 0
    unknown = await _asked(strict, agent_id="agent-2")
    assert (unknown.status, unknown.body["code"]) == (503, "gateway_unavailable")
    assert (await minted(strict))["version"] == 1


async def test_an_id_that_was_somebodys_is_not_new(strict: Stack) -> None:
    await minted(strict, agent_id="laptop")
    assert (await strict.ask("DELETE", f"{AGENTS}/laptop/binding", sub="root")).status == 200
    for sub in ("ann", "bob"):
        assert (await _asked(strict, sub, agent_id="laptop")).status == 409
    await bound(strict, "laptop", "bob")
    assert (await minted(strict, "bob", agent_id="laptop"))["version"] == 2


@pytest.mark.parametrize("agent_id", ["", "ab", "-ab", "_ab", "a b", "a.b", "a:b", "ä-b", "a" * 65, "abc\n"])
async def test_ids_that_no_agent_has_are_refused(strict: Stack, agent_id: str) -> None:
    assert (await _asked(strict, agent_id=agent_id)).status == 422


@pytest.mark.parametrize("agent_id", ["abc", "A-_", "0" * 64])
async def test_ids_at_the_bounds_are_taken(strict: Stack, agent_id: str) -> None:
    assert (await minted(strict, agent_id=agent_id))["agent_id"] == agent_id


async def test_who_only_reads_or_decides_gets_none(strict: Stack) -> None:
    for sub in ("vera", "otto"):
        assert (await _asked(strict, sub)).body["code"] == "role_required"


async def test_one_user_takes_only_so_many(strict: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "OWNED_MOST", 2)
    for _ in range(2):
        await minted(strict)
    refused = await _asked(strict)
    assert (refused.status, refused.body["code"]) == (409, "too_many_agents")
    assert len(await seen(strict, "ann")) == 2


async def test_a_node_without_the_secret_says_so(live: Stack) -> None:
    refused = await _asked(live)
    assert (refused.status, refused.body["code"]) == (409, "agent_tokens_off")


async def test_the_gateways_learn_each_version(mirrored: Stack, keys: redis.asyncio.Redis) -> None:
    await minted(mirrored, agent_id="laptop")
    assert await _version(keys, "ann", "laptop") == 1
    await minted(mirrored, agent_id="laptop", reset=True)
    assert await _version(keys, "ann", "laptop") == 2


async def test_a_transfer_and_an_unbinding_end_the_tokens_of_who_had_it(
    mirrored: Stack, keys: redis.asyncio.Redis
) -> None:
    await minted(mirrored, agent_id="laptop")
    await bound(mirrored, "laptop", "bob")
    assert await _version(keys, "ann", "laptop") == 2
    assert (await minted(mirrored, "bob", agent_id="laptop"))["version"] == 2
    await mirrored.ask("DELETE", f"{AGENTS}/laptop/binding", sub="root")
    assert await _version(keys, "bob", "laptop") == 3
    await bound(mirrored, "laptop", "ann")
    assert (await minted(mirrored, agent_id="laptop"))["version"] == 3


async def test_a_write_that_comes_late_brings_nothing_back(mirrored: Stack, keys: redis.asyncio.Redis) -> None:
    await minted(mirrored, agent_id="laptop")
    await minted(mirrored, agent_id="laptop", reset=True)
    assert await mirrored.context.reach.accept(TokenVersion("ann", "laptop", 1)) == 2
    assert await _version(keys, "ann", "laptop") == 2


@pytest.mark.parametrize("told", [b"7", b"{}", b"\xff", b'{"version":"x"}', b'{"version":99999999999}', b"[1]"])
async def test_nonsense_in_the_gateways_redis_is_replaced(
    mirrored: Stack, keys: redis.asyncio.Redis, told: bytes
) -> None:
    await keys.set("bridge:agent_token_version:ann:laptop", told)
    assert (await minted(mirrored, agent_id="laptop"))["version"] == 1
    assert await _version(keys, "ann", "laptop") == 1
    await keys.set("bridge:agent_token_version:ann:laptop", told)
    assert await mirrored.context.reach.mirror_once(mirrored.context.agents) == 1
    assert await _version(keys, "ann", "laptop") == 1


async def test_who_comes_from_elsewhere_with_a_later_version_goes_on_from_there(
    mirrored: Stack, keys: redis.asyncio.Redis
) -> None:
    await keys.set("bridge:agent_token_version:ann:laptop", json.dumps({"version": 5, "expires_at": 1}))
    assert (await minted(mirrored, agent_id="laptop"))["version"] == 5
    assert (await minted(mirrored, agent_id="laptop", reset=True))["version"] == 6
    assert await _version(keys, "ann", "laptop") == 6


async def test_a_flushed_redis_learns_them_all_again(
    mirrored: Stack, keys: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.api.reach.PAGE", 2)
    for number in range(5):
        await minted(mirrored, agent_id=f"laptop-{number}")
    await minted(mirrored, agent_id="laptop-3", reset=True)
    await bound(mirrored, "laptop-4", "bob")
    reach = mirrored.context.reach
    assert await reach.mirror_once(mirrored.context.agents) == 0
    await keys.delete(*[key async for key in keys.scan_iter("bridge:*")])
    assert await reach.mirror_once(mirrored.context.agents) == 6
    told = {(sub, n): await _version(keys, sub, f"laptop-{n}") for sub in ("ann", "bob") for n in range(5)}
    assert {agent: version for agent, version in told.items() if version is not None} == {
        ("ann", 0): 1,
        ("ann", 1): 1,
        ("ann", 2): 1,
        ("ann", 3): 2,
        ("ann", 4): 2,
        ("bob", 4): 2,
    }


async def test_a_redis_that_is_away_is_told_and_the_request_can_be_repeated(
    strict_database: str, redis_url: str, redis_prefix: str
) -> None:
    with EmbeddedValkey() as theirs:
        more = {"agent_token_secret": AGENT_SECRET, "gateway_redis_url": theirs.url}
        async with stack(strict_database, redis_url, redis_prefix, **more) as opened:
            introduce(opened)
            theirs.stop()
            failed = await _asked(opened, agent_id="laptop")
            assert (failed.status, failed.body["code"]) == (503, "gateway_redis_unavailable")
            assert failed.headers["Retry-After"]
            assert (await opened.sql("SELECT token_version FROM agent_bindings"))[0][0] == 1
            theirs.start()
            assert (await minted(opened, agent_id="laptop"))["version"] == 1
            async with redis.asyncio.Redis.from_url(theirs.url) as keys:
                assert await _version(keys, "ann", "laptop") == 1


async def test_a_minted_token_lets_the_agent_in_and_after_a_reset_only_the_new_one_does(
    strict_database: str, redis_url: str, redis_prefix: str
) -> None:
    """At a Gateway that checks tokens as its contract says, over the Redis that we tell versions to."""
    gateway = DevGateway(agent_token_secret=AGENT_SECRET, redis=RedisMode(redis_url, "gw-1"))
    await gateway.start()
    agent = Tools("laptop")
    more = {"gateway_url": gateway.url, "agent_token_secret": AGENT_SECRET, "gateway_redis_url": redis_url}
    async with stack(strict_database, redis_url, redis_prefix, **more) as opened:
        introduce(opened)

        async def state() -> str:
            online: str = (await seen(opened, "ann"))["laptop"]["online"]
            return online

        first = await minted(opened, agent_id="laptop")
        with pytest.raises(TokenRefused, match="invalid token"):
            await gateway.connect(agent)
        assert await state() == "offline"
        agent.token = first["token"]
        await gateway.connect(agent)
        opened.context.reach._asked_at = 0
        assert await state() == "online"
        second = await minted(opened, agent_id="laptop", reset=True)
        tunnel = gateway._tunnels["laptop"]
        assert tunnel.online, "a connection that stands is not looked at"
        await tunnel.reconnect()
        assert not tunnel.online
        agent.token = second["token"]
        await eventually(lambda: tunnel.online, what="the agent being let in with its new token")
        await bound(opened, "laptop", "bob")
        await tunnel.reconnect()
        assert not tunnel.online, "the token of who owned it before"
        agent.token = (await minted(opened, "bob", agent_id="laptop"))["token"]
        await eventually(lambda: tunnel.online, what="the agent being let in with its new owner's token")
    await gateway.stop()
