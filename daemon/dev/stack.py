"""The whole of Runwarden on this machine: Postgres, Valkey, the dev Gateway with MCP servers, and one node.

``async with DevStack(data, servers) as stack`` for ``foreground``, ``demo`` and tests. Leaving drains the node and
ends, by pid, everything that entering started; so does a start that fails, or is cancelled, half-way. It never touches
what it did not start, and listens on 127.0.0.1 only.

    data/postgres, data/valkey      the servers' files (with ``fresh``: emptied at the start)
    data/jwt-secret, gateway-token, agent-token-secret
                                    made at the first start, for this user's eyes only
    data/mcp/*.log                  what the MCP servers write to standard error
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

import psycopg
import redis

from daemon.auth.agent_tokens import agent_token
from daemon.auth.caller import Origin
from daemon.auth.tokens import mint
from daemon.config import load
from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from daemon.dev.envelope import Json
from daemon.dev.gateway import DevGateway
from daemon.dev.mcp_agent import McpAgent
from daemon.errors import Conflict, RunwardenError, SetupError
from daemon.node import Node, open_node
from daemon.store.agents import Agents
from daemon.store.migrate import migrate
from daemon.store.pool import open_pool

AGENT_ID = "local"
USER = "dev"
TOKEN_LIFE_S = 30 * 24 * 3600

_T = TypeVar("_T")


class DevStack:
    """``servers`` is an ``mcpServers`` object; ``port`` None means RUNWARDEN_PORT or 8080, 0 a free one.

    ``fresh`` forgets every workflow and run of earlier starts over ``data``, and does not wait for the disk: what will
    be forgotten need not survive a crash of the machine. ``weather`` is what the Gateway does wrong from the start.
    Raises SetupError, on entering, for whatever forbids a start.
    """

    def __init__(
        self,
        data: Path,
        servers: Mapping[str, Any],
        *,
        port: int | None = None,
        fresh: bool = False,
        weather: Sequence[str] = (),
    ) -> None:
        self.data = data.resolve()
        self.agent_id = AGENT_ID
        self.api_url = ""
        """Where the API answers, once entered."""
        self.token = ""
        """A JWT of the user ``dev`` for the API, valid for 30 days; every start prints a new one."""
        self.tools: list[Json] = []
        """What the agent offers, as the Gateway lists it: name, description, input_schema, annotations, meta."""
        self.gateway_url = ""
        """Where the dev Gateway answers; its token is in ``data/gateway-token``."""
        self._port = port
        self._fresh = fresh
        self.weather = weather
        """The Gateway's weather at the start (``docs/weather.md``)."""
        self._agent = McpAgent(AGENT_ID, servers, log_dir=self.data / "mcp")
        self.servers = [name for name, entry in servers.items() if not entry.get("disabled")]
        self._ends = AsyncExitStack()
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            await asyncio.create_task(self._start(), name="start of the stack")
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._leave()

    async def _leave(self) -> None:
        """In a task of its own: ours may have been cancelled, and a node must not take that for its own."""
        await asyncio.create_task(self._ends.aclose(), name="end of the stack")

    @property
    def silent(self) -> list[str]:
        """The configured MCP servers that offer no tool: mostly those that could not be started."""
        heard = {tool.get("meta", {}).get("server") for tool in self.tools}
        return [name for name in self.servers if name not in heard]

    async def ended(self) -> None:
        """Waits until the node ends by itself, which it should not: raises its fault. Cancel to stop waiting."""
        assert self._running is not None, "enter the stack first"  # noqa: S101 - a fault of the programmer's
        await asyncio.wait({self._running})
        _raise_fault_of(self._running)
        raise RunwardenError("The node ended by itself.")

    async def _start(self) -> None:
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            names = ("jwt-secret", "gateway-token", "agent-token-secret")
            jwt_secret, gateway_token, agent_secret = (_secret(self.data / name) for name in names)
        except OSError as fault:
            raise SetupError(f"{self.data} cannot hold our data: {fault}. Name another directory.") from None
        postgres = EmbeddedPostgres(self.data / "postgres", fast=self._fresh)
        valkey = EmbeddedValkey(self.data / "valkey")
        gateway = DevGateway(token=gateway_token, agent_token_secret=agent_secret)
        self._agent.token = _token_of(AGENT_ID, agent_secret)
        gateway.weather.change(*self.weather)
        gateway.add_agent(self._agent)
        try:
            async with asyncio.TaskGroup() as starting:
                starting.create_task(self._start_postgres(postgres))
                starting.create_task(self._start_valkey(valkey))
                starting.create_task(self._start_gateway(gateway))
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from None
        self.tools, self.gateway_url = self._agent.tools(), gateway.url
        await self._start_node(
            postgres_url=postgres.url,
            redis_url=valkey.url,
            gateway_url=gateway.url,
            gateway_token=gateway_token,
            jwt_secret=jwt_secret,
            agent_token_secret=agent_secret,
        )
        self.token = mint(USER, jwt_secret, lifetime_s=TOKEN_LIFE_S)

    async def _start_postgres(self, postgres: EmbeddedPostgres) -> None:
        self._ends.push_async_callback(_in_thread, postgres.stop)
        await _in_thread(postgres.start)
        if self._fresh:
            await _in_thread(lambda: _empty_postgres(postgres.url))
        await _in_thread(lambda: migrate(postgres.url))
        await _bind(postgres.url)

    async def _start_valkey(self, valkey: EmbeddedValkey) -> None:
        self._ends.push_async_callback(_in_thread, valkey.stop)
        await _in_thread(valkey.start)
        if self._fresh:
            await _in_thread(lambda: _empty_valkey(valkey.url))

    async def _start_gateway(self, gateway: DevGateway) -> None:
        self._ends.push_async_callback(gateway.stop)
        await gateway.start()

    async def _start_node(self, **settings: Any) -> None:
        if self._port is not None:
            settings["port"] = self._port
        node = await self._ends.enter_async_context(open_node(load(host="127.0.0.1", role="both", **settings)))
        started = asyncio.Event()
        self._running = asyncio.create_task(node.run(started), name="node")
        self._ends.push_async_callback(_end_node, node, self._running)
        up = asyncio.create_task(started.wait())
        try:
            await asyncio.wait({self._running, up}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()
        _raise_fault_of(self._running)
        self.api_url = node.url


async def _end_node(node: Node, running: asyncio.Task[None]) -> None:
    """Drain, then stop. A cancellation meanwhile (a second Ctrl-C) stops without draining."""
    try:
        if not running.done():
            await node.drain()
    finally:
        running.cancel()
        await asyncio.wait({running})


def _raise_fault_of(task: asyncio.Task[None]) -> None:
    """Raises what ended the task, if it has ended badly; one fault of a group stands for all."""
    fault = task.exception() if task.done() and not task.cancelled() else None
    if isinstance(fault, ExceptionGroup):
        fault = fault.exceptions[0]
    if fault is not None:
        raise fault


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Blocking work in a thread. A cancellation waits for its end: what it starts must not outlive us unseen."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    asked: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as cancelled:
            asked = cancelled
    if asked is not None:
        task.exception()
        raise asked
    return task.result()


async def _bind(url: str) -> None:
    """Our agent is our user's; in data of before it may have become somebody else's, and stays theirs."""
    pool = await open_pool(url, size=1, patience_s=5)
    try:
        await Agents(pool).bind(AGENT_ID, USER, Origin(actor=USER, client="runwarden dev"), free_only=True)
    except Conflict:
        pass
    finally:
        await pool.close()


def _token_of(agent_id: str, secret: str) -> str:
    """What our agent shows our Gateway, which has no Redis and so compares no versions."""
    now = int(time.time())
    times = {"issued_at": now, "expires_at": now + TOKEN_LIFE_S}
    return agent_token(agent_id, owner=USER, version=1, secret=secret, issuer="runwarden", **times)


def _empty_postgres(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")


def _empty_valkey(url: str) -> None:
    with redis.Redis.from_url(url) as connection:
        connection.flushall()


def _secret(path: Path) -> str:
    """The secret kept in a file that only its owner can read; made where there is none."""
    if path.exists():
        path.chmod(0o600)
        kept = path.read_text(encoding="ascii", errors="replace").strip()
        if len(kept) >= 32:
            return kept
    draft = path.with_suffix(f".{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(secrets.token_urlsafe(32) + "\n", encoding="ascii")
    draft.replace(path)
    return path.read_text(encoding="ascii").strip()
