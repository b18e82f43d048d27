"""A Gateway in Redis mode and its Redis, side by side, for the sentences of the contract's §9."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from redis.asyncio import Redis

from daemon.dev.gateway_redis import RedisMode
from tests.gateway.conftest import Wire, dev_gateway
from tests.patience import PATIENCE_S

CHANNEL = "bridge:evt"


class Mode:
    """``wire`` speaks HTTP to the Gateway, ``redis`` is its Redis, ``gateway_id`` its id."""

    def __init__(self, wire: Wire, redis: Redis, gateway_id: str) -> None:
        self.wire, self.redis, self.gateway_id = wire, redis, gateway_id

    @property
    def commands(self) -> str:
        """The key of its command stream."""
        return f"bridge:cmd:{self.gateway_id}"

    async def command(self, kind: str, payload: Any, *, agent: str | None = None, req_id: str | None = None) -> str:
        """Puts a command into the stream, as an envelope; its req_id."""
        req_id = req_id or secrets.token_hex(8)
        told = {"v": 1, "type": kind, "agent_id": agent or self.wire.agent, "req_id": req_id, "payload": payload}
        await self.redis.xadd(self.commands, {"envelope": json.dumps(told)})
        return req_id

    async def taken(self) -> bool:
        """Whether every command so far was read and acknowledged."""
        (group,) = await self.redis.xinfo_groups(self.commands)
        (stream,) = [await self.redis.xinfo_stream(self.commands)]
        return bool(group["last-delivered-id"] == stream["last-generated-id"] and group["pending"] == 0)


class Published:
    """What is published on one channel from now on."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    async def until(self, kind: str, req_id: str) -> bytes:
        """The first message of this type and call."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                message = await self._pubsub.get_message(timeout=PATIENCE_S)
                if message is not None and message["type"] == "message":
                    told = json.loads(message["data"])
                    if (told["type"], told.get("req_id")) == (kind, req_id):
                        return bytes(message["data"])


@asynccontextmanager
async def published(redis: Redis, channel: str = CHANNEL) -> AsyncIterator[Published]:
    """A subscription that is active."""
    pubsub = redis.pubsub()
    try:
        await pubsub.subscribe(channel)
        assert (await pubsub.get_message(timeout=PATIENCE_S))["type"] == "subscribe"
        yield Published(pubsub)
    finally:
        await pubsub.aclose()


@asynccontextmanager
async def gateway_in_redis_mode(http: aiohttp.ClientSession, redis_url: str) -> AsyncIterator[Mode]:
    """The real one of GATEWAY_URL and GATEWAY_REDIS_URL where both are given, else the dev Gateway over Valkey."""
    url, its_redis = os.environ.get("GATEWAY_URL"), os.environ.get("GATEWAY_REDIS_URL")
    if url and its_redis:
        async with Redis.from_url(its_redis) as redis:
            agent = os.environ["GATEWAY_AGENT"]
            held = json.loads(await redis.get(f"agent_online:{agent}"))
            yield Mode(Wire(http, url.rstrip("/"), agent, os.environ["GATEWAY_TOKEN"]), redis, held["gateway_id"])
        return
    async with (
        Redis.from_url(redis_url) as redis,
        dev_gateway(http, token="internal", redis=RedisMode(redis_url, "gw-1")) as dev,
    ):
        yield Mode(dev.wire, redis, "gw-1")
