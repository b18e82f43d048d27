"""Agents' tokens at the dev Gateway (contract §8): which are let in, and that only a new connection is looked at."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
import redis.asyncio

from daemon.dev.gateway import DevGateway
from daemon.dev.gateway_redis import RedisMode
from daemon.dev.handshake import TokenRefused
from daemon.dev.scripted_agent import ScriptedAgent
from tests.patience import eventually

SECRET = "the secret of the agents that are tested here"
KEY = "bridge:agent_token_version:ann:laptop"
GOOD = {"type": "bridge_agent", "agent_id": "laptop", "sub": "ann", "ver": 1}


def _agent(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> ScriptedAgent:
    agent = ScriptedAgent("laptop")
    said = {name: value for name, value in (GOOD | claims).items() if value is not None}
    agent.token = jwt.encode(said, secret, algorithm=algorithm)
    return agent


@pytest.fixture
async def gateway() -> AsyncIterator[DevGateway]:
    opened = DevGateway(agent_token_secret=SECRET)
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def keyed(redis_url: str) -> AsyncIterator[tuple[DevGateway, redis.asyncio.Redis]]:
    opened = DevGateway(agent_token_secret=SECRET, redis=RedisMode(redis_url, "gw-1"))
    await opened.start()
    async with redis.asyncio.Redis.from_url(redis_url) as keys:
        yield opened, keys
    await opened.stop()


@pytest.mark.parametrize(
    "claims", [{}, {"ver": 9}, {"iat": 2**40}, {"iss": "anybody"}, {"aud": "x"}, {"exp": 2**40}, {"nbf": 1}]
)
async def test_a_good_token_lets_its_agent_in(gateway: DevGateway, claims: dict[str, Any]) -> None:
    agent = _agent(**claims)
    await gateway.connect(agent)
    assert gateway._online("laptop") is not None


@pytest.mark.parametrize(
    "claims",
    [
        {"type": "user"},
        {"type": None},
        {"agent_id": "other"},
        {"sub": ""},
        {"sub": None},
        {"ver": 0},
        {"ver": "1"},
        {"ver": True},
        {"ver": None},
        {"exp": 1},
        {"nbf": 2**40},
        {"secret": "another secret, which is as long as the one"},
        {"algorithm": "HS512", "secret": SECRET * 2},
    ],
)
async def test_any_other_does_not(gateway: DevGateway, claims: dict[str, Any]) -> None:
    with pytest.raises(TokenRefused, match=r"^invalid token$"):
        await gateway.connect(_agent(**claims))
    assert gateway._online("laptop") is None


@pytest.mark.parametrize("token", ["", "x", "a.b.c"])
async def test_nor_does_what_is_none(gateway: DevGateway, token: str) -> None:
    agent = ScriptedAgent("laptop")
    agent.token = token
    with pytest.raises(TokenRefused):
        await gateway.connect(agent)


async def test_without_redis_versions_are_not_compared(gateway: DevGateway) -> None:
    await gateway.connect(_agent(ver=77))


@pytest.mark.parametrize("told", [None, b"1", b'{"version":2}', b'{"version":"1"}', b"{}", b"x"])
async def test_in_redis_mode_the_version_must_be_the_one_that_stands(
    keyed: tuple[DevGateway, redis.asyncio.Redis], told: bytes | None
) -> None:
    gateway, keys = keyed
    if told is not None:
        await keys.set(KEY, told)
    with pytest.raises(TokenRefused, match=r"^invalid token version$"):
        await gateway.connect(_agent())
    await keys.set(KEY, json.dumps({"version": 1, "expires_at": 1}))
    await gateway.connect(_agent())


async def test_a_connection_that_stands_is_not_looked_at_again_and_the_next_one_is(
    keyed: tuple[DevGateway, redis.asyncio.Redis],
) -> None:
    gateway, keys = keyed
    await keys.set(KEY, b'{"version":1}')
    agent = _agent(exp=int(time.time()) + 600)
    await gateway.connect(agent)
    await keys.set(KEY, b'{"version":2}')
    tunnel = gateway._online("laptop")
    assert tunnel is not None
    await tunnel.reconnect()
    assert not tunnel.online
    agent.token = _agent(ver=2).token
    await eventually(lambda: tunnel.online, what="the agent being let in with its new token")
