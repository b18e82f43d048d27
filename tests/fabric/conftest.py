"""The fabric under test. ``test_inbox``, ``test_lease``, ``test_ready`` and ``test_bus`` are its conformance suite.

They hold for every implementation: to join, write a class with the methods of ``OverRedis`` and add it to
``IMPLEMENTATIONS``. What only a real Redis does (restarts, evictions, killed connections) stands in ``test_server``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
import uuid_utils.compat as uuid7

from daemon.fabric.bus import Bus, Publisher
from daemon.fabric.client import Client, open_client
from daemon.fabric.generation import Generation
from daemon.fabric.inbox import Inbox
from daemon.fabric.keys import Keys
from daemon.fabric.lease import Leases
from daemon.fabric.ready import Ready
from daemon.fabric.role import Beacon, Role, shining
from daemon.fabric.waiting import waiting
from daemon.machine.commands import Epoch, RunId
from daemon.runtime.ports import Held
from tests.sim import fabric as double
from tests.sim.line import Connection, Near
from tests.sim.redis import Redis

LONG_S = 60.0
NOW_MS = 1
"""The shortest wait for an answer that should be there already."""


class OverRedis:
    """The real thing."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self.client = client
        self.keys = keys
        self.shining: Callable[[Sequence[str]], Awaitable[set[str]]] = partial(shining, client, keys)
        self.waiting: Callable[[Sequence[RunId]], Awaitable[set[RunId]]] = partial(waiting, client, keys)

    def inbox(self, bound: int = 100) -> Inbox:
        return Inbox(self.client, self.keys, bound=bound)

    def leases(self, ttl_s: float = LONG_S) -> Leases:
        return Leases(self.client, self.keys, ttl_s=ttl_s)

    def ready(self, node: str = "n1") -> Ready:
        return Ready(self.client, self.keys, node=node)

    def role(self, node: str, ttl_s: float = LONG_S) -> Role:
        return Role(self.client, self.keys, "sweep", node=node, ttl_s=ttl_s)

    def beacon(self, name: str, node: str, ttl_s: float = LONG_S) -> Beacon:
        return Beacon(self.client, self.keys, name, node=node, ttl_s=ttl_s)

    def generation(self) -> Generation:
        return Generation(self.client, self.keys)

    def bus(self, node: str = "n1") -> Bus:
        return Bus(self.client, self.keys, node=node)

    def publisher(self) -> Publisher:
        return Publisher(self.client, self.keys)

    async def flush(self) -> None:
        """Forget everything, as a server does that restarts empty."""
        await self.client.redis.flushall()


@asynccontextmanager
async def over_redis(url: str, prefix: str) -> AsyncIterator[OverRedis]:
    client = await open_client(url, patience_s=10)
    yield OverRedis(client, Keys(prefix))
    await client.close()


class OverMemory:
    """The simulation's double; the methods of ``OverRedis`` over a server in memory."""

    def __init__(self) -> None:
        self._server = Redis(lambda: int(time.time() * 1000))
        self._to = Connection(self._server, Near())
        self.shining: Callable[[Sequence[str]], Awaitable[set[str]]] = partial(double.shining, self._to, None)
        self.waiting: Callable[[Sequence[RunId]], Awaitable[set[RunId]]] = partial(double.waiting, self._to, None)

    def inbox(self, bound: int = 100) -> double.Inbox:
        return double.Inbox(self._to, None, bound=bound)

    def leases(self, ttl_s: float = LONG_S) -> double.Leases:
        return double.Leases(self._to, None, ttl_s=ttl_s)

    def ready(self, node: str = "n1") -> double.Ready:
        return double.Ready(self._to, None, node=node)

    def role(self, node: str, ttl_s: float = LONG_S) -> double.Role:
        return double.Role(self._to, None, "sweep", node=node, ttl_s=ttl_s)

    def beacon(self, name: str, node: str, ttl_s: float = LONG_S) -> double.Beacon:
        return double.Beacon(self._to, None, name, node=node, ttl_s=ttl_s)

    def generation(self) -> double.Generation:
        return double.Generation(self._to, None)

    def bus(self, node: str = "n1") -> double.Bus:
        return double.Bus(self._to, None, node=node)

    def publisher(self) -> double.Publisher:
        return double.Publisher(self._to, None)

    async def flush(self) -> None:
        self._server.flush()


@asynccontextmanager
async def over_memory(url: str, prefix: str) -> AsyncIterator[OverMemory]:
    yield OverMemory()


IMPLEMENTATIONS: dict[str, Callable[[str, str], AbstractAsyncContextManager[OverRedis | OverMemory]]] = {
    "redis": over_redis,
    "memory": over_memory,
}


@pytest.fixture(params=IMPLEMENTATIONS)
async def fabric(request: pytest.FixtureRequest, redis_url: str, redis_prefix: str) -> AsyncIterator[OverRedis]:
    async with IMPLEMENTATIONS[request.param](redis_url, redis_prefix) as opened:
        yield opened


def new_run() -> RunId:
    return RunId(uuid7.uuid7())


async def held_by(fabric: OverRedis, node: str, run_id: RunId, *, epoch: int = 1) -> Held:
    """A run that this node holds as the host would: taken, claimed, sealed."""
    leases, owner = fabric.leases(), f"{node}/nonce"
    assert await leases.take({run_id: owner}) == {run_id}
    held = (run_id, owner, Epoch(epoch))
    assert await leases.seal([held]) == {run_id}
    return held


async def offered(fabric: OverRedis) -> list[RunId]:
    """Every run on offer, in order; takes them all."""
    ready = fabric.ready("collector")
    offers = await ready.take(1000, NOW_MS) + await ready.take(1000, NOW_MS)  # the first take of all makes the group
    return [run_id for _, run_id in offers]
