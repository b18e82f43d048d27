"""A node over two dev Gateways, ``a`` and ``b``: agents that move between them, Gateways that die, a Redis of theirs.

What really ran is counted over both ledgers. Nothing of ours is replaced.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from daemon import telemetry
from daemon.config import Settings, load
from daemon.dev.embedded import EmbeddedValkey
from daemon.dev.envelope import Json
from daemon.dev.gateway_redis import RedisMode
from daemon.dev.processes import free_port
from tests.api.harness import QUICK, LoudGateway, Stack, Tools, serving
from tests.patience import eventually


class Fickle(LoudGateway):
    """A dev Gateway whose event streams may bring nothing or not open, and whose POST hangs for frozen agents."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.mute = False
        self.closed = False
        self.frozen: set[str] = set()
        self.hanging = 0

    def _offer(self, event: Json, encoded: bytes) -> None:
        if not self.mute:
            super()._offer(event, encoded)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=503) if self.closed else await super()._events(request)

    async def _invoke(self, request: web.Request) -> web.StreamResponse:
        if json.loads(await request.read())["agent_id"] in self.frozen:
            self.hanging += 1
            await asyncio.Event().wait()
        return await super()._invoke(request)


@dataclass(slots=True)
class World:
    """``live`` speaks to the node; ``agents`` by id say which Gateway they are to be found at (``at``)."""

    live: Stack
    gateways: dict[str, Fickle]
    agents: dict[str, Tools]
    at: dict[str, str] = field(default_factory=dict)
    server: EmbeddedValkey | None = None
    """The Gateways' own Valkey."""
    settings: Settings | None = None

    async def connect(self, agent_id: str, gateway: str) -> None:
        self.at[agent_id] = gateway
        await self.gateways[gateway].connect(self.agents[agent_id])

    async def move(self, agent_id: str, gateway: str) -> None:
        """The agent's connection ends, and it connects elsewhere."""
        await self.gateways[self.at[agent_id]].disconnect(agent_id)
        await self.connect(agent_id, gateway)

    async def checks(self) -> dict[str, str]:
        told = await self.live.ask("GET", "/readyz")
        assert told.status == 200
        checks: dict[str, str] = told.body["checks"]
        return checks

    async def heard(self, **are: bool) -> None:
        """Wait until readyz says of these Gateways (or ``redis``) that they are heard, or not."""

        async def so() -> bool:
            checks = await self.checks()
            return all((checks[f"gateway {name}"] == "ok") is heard for name, heard in are.items())

        await eventually(so, what=f"{are}")

    def ran(self) -> list[tuple[str, str]]:
        """(gateway, tool) of every execution, per Gateway in order."""
        return [(name, one.tool_name) for name, gateway in self.gateways.items() for one in gateway.ledger]

    def never_twice(self) -> None:
        times = Counter(one.req_id for gateway in self.gateways.values() for one in gateway.ledger)
        assert set(times.values()) <= {1}

    async def begun(self, agent_id: str, tool: str) -> None:
        await eventually(lambda: tool in self.agents[agent_id].running, what=f"{tool} running at {agent_id}")

    def cut_streams(self, gateway: str) -> None:
        """The Gateway's event streams end; they may be opened again."""
        for request in self.gateways[gateway]._subscribers.values():
            assert request.transport is not None
            request.transport.abort()

    async def log_lines(self, run_id: str) -> list[str]:
        """What the tools said, line by line."""
        events = await self.live.log(run_id)
        said = "".join(event["payload"]["data"] for event in events if event["event_type"] == "tool.log")
        return said.splitlines()


def count(name: str, **labels: str) -> float:
    """A metric's value in this process; compare two of them."""
    return telemetry.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def world(
    database: str, redis_url: str, redis_prefix: str, server: EmbeddedValkey | None, **more: Any
) -> AsyncIterator[World]:
    """``agent-1`` is at ``a`` and ``agent-2`` at ``b``; with a ``server`` both Gateways are in Redis mode over it."""
    tools = {agent_id: Tools(agent_id) for agent_id in ("agent-1", "agent-2")}
    results = more.pop("results", True)
    gateways = {name: Fickle(results=results, redis=RedisMode(server.url, name) if server else None) for name in "ab"}
    try:
        urls = {name: await gateway.start(port=free_port()) for name, gateway in gateways.items()}
        where = {"postgres_url": database, "redis_url": redis_url, "redis_prefix": redis_prefix}
        where["gateway_url"] = ",".join(f"{name}={url}" for name, url in urls.items())
        where["gateway_redis_url"] = server.url if server else ""
        settings = load(**QUICK | where | more)
        async with (
            serving(settings) as node,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            live = Stack(node.url, http, gateways["a"], tools["agent-1"], database, settings, node)
            made = World(live, gateways, tools, server=server, settings=settings)
            await made.connect("agent-1", "a")
            await made.connect("agent-2", "b")
            await made.heard(a=True, b=True, **({"redis": True} if server else {}))
            try:
                yield made
            finally:
                for agent in tools.values():
                    agent.release.set()
    finally:
        await asyncio.gather(*(gateway.stop() for gateway in gateways.values()))
