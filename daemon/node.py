"""The composition root: opens everything in order, runs it in one TaskGroup, drains, closes in reverse.

Used by ``cli``, ``dev`` and the end-to-end tests. Nothing else may know every room.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from daemon.api.context import Health
from daemon.api.front import Front
from daemon.api.server import listening
from daemon.config import Settings, mask
from daemon.errors import SetupError
from daemon.fabric.client import Client, open_client
from daemon.fabric.keys import Keys
from daemon.runtime.hearing import REDIS
from daemon.runtime.runner import Runner
from daemon.store.journal import Lane
from daemon.store.migrate import missing
from daemon.store.pool import Pool, open_pool, warm
from daemon.store.sql import LOAD
from daemon.telemetry import log
from gateway_client import GatewayClient, GatewayRedis, Gateways

PROBE_S = 1.0
CLOSE_S = 5.0
WARM_AFTER_S = 1.0
WARM_EACH_S = 120.0
"""Connections that nobody used for 300 s are closed."""
GC_YOUNG = 20_000
"""New objects between two looks for cycles."""


class Node:
    """One node, opened. ``run`` serves until cancelled; ``drain`` is the one extra verb."""

    def __init__(
        self, settings: Settings, pool: Pool, redis: Client, gateways: Gateways, runner: Runner | None
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._redis = redis
        self._runner = runner
        self._health = Health()
        keys = Keys(settings.fabric.redis_prefix)
        ops_only = settings.runtime.role == "runner"
        self._front = Front(settings, pool, redis, keys, self._health, gateways, ops_only=ops_only)
        self.url = ""
        """Where it answers, once ``run`` has begun."""

    async def run(self, started: asyncio.Event) -> None:
        """Serve until cancelled; sets ``started`` when it answers. Raises SetupError when the port is taken."""
        async with AsyncExitStack() as stack:
            self.url = await self._listen(stack)
            async with asyncio.TaskGroup() as group:
                parts = {"probe": self._probe(), "warm": self._warm(), **self._front.parts()}
                parts |= self._runner.parts() if self._runner is not None else {}
                for name, part in parts.items():
                    group.create_task(part, name=name)
                runtime = self._settings.runtime
                log.info("node ready", url=self.url, node=runtime.node_name, role=runtime.role)
                started.set()

    async def drain(self) -> None:
        """Leave without harm: not ready first, so that no new client comes; then the runs; the streams last."""
        self._health.leaving = True
        if self._runner is not None:
            await self._runner.drain()
        self._front.close_streams()

    async def _listen(self, stack: AsyncExitStack) -> str:
        http = self._settings.http
        try:
            return await stack.enter_async_context(listening(self._front.app, http.host, http.port))
        except OSError as fault:
            raise SetupError(
                f"Cannot listen on {http.host}:{http.port}: {fault.strerror or fault}. "
                "Stop what uses the port, or set RUNWARDEN_PORT to another."
            ) from None

    async def _probe(self) -> None:
        """Keep what ``/readyz`` tells up to date."""
        state: dict[str, str | None] = {"postgres": None, "redis": None}
        self._health.parts["postgres"] = lambda: state["postgres"]
        self._health.parts["redis"] = lambda: state["redis"]
        if self._runner is not None:
            self._watch_gateways()
        while True:
            state["postgres"] = await _fault_of(self._pool.fetchval("SELECT 1", timeout=PROBE_S * 2))
            state["redis"] = await _fault_of(self._redis.redis.ping())
            await asyncio.sleep(PROBE_S)

    async def _warm(self) -> None:
        """Keep connections to Postgres open; the first time a moment after the start, which needs the cores itself."""
        pause_s = WARM_AFTER_S
        while True:
            await asyncio.sleep(pause_s)
            await warm(self._pool, LOAD, [], 1)
            pause_s = WARM_EACH_S

    def _watch_gateways(self) -> None:
        """``gateway`` for the only one, else ``gateway a`` and ``gateway b``; ``gateway redis`` for their Redis."""
        urls, redis_url = self._settings.gateway.urls, self._settings.gateway.gateway_redis_url.get_secret_value()
        for name, url in urls.items():
            part = "gateway" if len(urls) == 1 else f"gateway {name}"
            where = "" if len(urls) == 1 else " there"
            fault = f"The event stream of {mask(url)} is not open; no tool can be called{where}."
            self._health.parts[part] = partial(self._deaf_to, name, fault)
        if redis_url:
            fault = f"The Gateways' Redis at {mask(redis_url)} is not heard; their event streams are all we have."
            self._health.parts["gateway redis"] = partial(self._deaf_to, REDIS, fault)

    def _deaf_to(self, gateway: str, fault: str) -> str | None:
        return fault if self._runner is not None and self._runner.deaf_to(gateway) else None


def _settle_memory() -> None:
    """What a node is made of lives as long as it: the collector need not look at it again and again.

    Nearly all that a turn makes goes as its last reference does, so that looking for cycles each 700 new objects finds
    next to nothing. Both together took a seventh of the node's CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_YOUNG, 20, 20)


async def _fault_of(question: Awaitable[object]) -> str | None:
    try:
        await question
        fault = None
    except Exception as broken:  # noqa: BLE001 - whatever is wrong there is what we tell
        fault = f"does not answer: {str(broken) or type(broken).__name__}"
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError  # asyncpg and redis-py may swallow it, see store/pool and fabric/client
    return fault


@asynccontextmanager
async def open_node(settings: Settings) -> AsyncIterator[Node]:
    """A node with everything open; closed in reverse on leaving. Raises SetupError when something cannot work."""
    store, fabric = settings.store, settings.fabric
    url = store.postgres_url.get_secret_value()
    if settings.gateway.agent_token_secret and settings.gateway.agent_token_secret == settings.identity.jwt_secret:
        raise SetupError("RUNWARDEN_AGENT_TOKEN_SECRET must not be RUNWARDEN_JWT_SECRET: agents are no people.")
    async with AsyncExitStack() as stack:
        pool = await open_pool(
            url, size=store.postgres_pool, patience_s=store.start_patience_s, pooled=store.postgres_pooled
        )
        stack.push_async_callback(_close_pool, pool)
        unseen = await asyncio.to_thread(missing, url)
        if unseen:
            raise SetupError(f"The database lacks migrations ({', '.join(unseen)}): run 'runwarden migrate' first.")
        redis = await open_client(
            fabric.redis_url.get_secret_value(),
            patience_s=store.start_patience_s,
            allow_eviction=fabric.redis_allow_eviction,
        )
        stack.push_async_callback(redis.close)
        gateways = gateways_by(settings)
        stack.push_async_callback(gateways.aclose)
        carries = settings.runtime.role != "front"
        runner = await _open_runner(settings, pool, redis, gateways, stack) if carries else None
        yield Node(settings, pool, redis, gateways, runner)


async def _open_runner(
    settings: Settings, pool: Pool, redis: Client, gateways: Gateways, stack: AsyncExitStack
) -> Runner:
    store = settings.store
    url = store.postgres_url.get_secret_value()
    lanes = [Lane(url, pooled=store.postgres_pooled) for _ in range(store.journal_lanes)]
    for lane in lanes:
        await lane.open()
        stack.push_async_callback(lane.close)
    return Runner(settings, pool, redis, Keys(settings.fabric.redis_prefix), gateways, lanes)


def gateways_by(settings: Settings) -> Gateways:
    """The clients of all Gateways that the settings name; nothing is connected yet. Raises SetupError."""
    gateway, redis_url = settings.gateway, settings.gateway.gateway_redis_url.get_secret_value()
    try:
        clients = {
            name: GatewayClient(
                url,
                gateway.gateway_token.get_secret_value(),
                max_connections=gateway.gateway_connections,
                calls_per_agent=gateway.gateway_agent_calls,
                # Who waits for a place must be told so while its attempt is still waited for.
                queue_timeout_s=settings.runtime.ack_timeout_s / 2,
            )
            for name, url in gateway.urls.items()
        }
        return Gateways(clients, GatewayRedis(redis_url) if redis_url else None)
    except ValueError as fault:
        raise SetupError(f"The Gateway's settings cannot work: {fault}") from None


async def _close_pool(pool: Pool) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def serve(settings: Settings, stop: asyncio.Event, started: asyncio.Event | None = None) -> None:
    """Run a node until ``stop`` is set, then drain it. Raises SetupError when it cannot start."""
    async with open_node(settings) as node:
        _settle_memory()
        up = started or asyncio.Event()
        running = asyncio.create_task(node.run(up), name="node")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done():
            await node.drain()
            running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            log.info("node stopped")
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
