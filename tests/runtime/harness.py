"""Nodes without their front, in this process: real store, real fabric, the dev Gateway, and hands to do harm with.

A ``Rig`` is what nodes share, and how tests create runs and look at them; a ``Node`` is one runner, to be drained or
crashed. What really ran is in the Gateway's ledger. Nothing of ours is replaced.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import uuid_utils.compat as uuid7

from daemon import telemetry
from daemon.auth.caller import Caller, Origin
from daemon.config import load
from daemon.dev.agent import Emit, ToolFailure
from daemon.dev.envelope import Json
from daemon.dev.gateway import DevGateway
from daemon.dev.processes import free_port
from daemon.dev.scripted_agent import ScriptedAgent, text_result
from daemon.fabric.client import Client, open_client
from daemon.fabric.inbox import Inbox
from daemon.fabric.keys import Keys
from daemon.machine.commands import CommandId, CommandKind, RunId
from daemon.machine.spec import parse_spec
from daemon.machine.state import Limits
from daemon.node import gateways_by
from daemon.runtime.runner import Runner
from daemon.store.commands import Commands, NewCommand
from daemon.store.journal import Lane
from daemon.store.pool import Pool, open_pool
from daemon.store.runs import RunHead, Runs
from tests.patience import PATIENCE_S, eventually

AGENT = "agent-1"
USER = "ann"
ORIGIN = Origin(actor=USER)
QUICK: dict[str, Any] = {
    "jwt_secret": "a secret that no test here needs",
    "postgres_pool": 4,
    "lease_ttl_s": 10,
    "sweep_period_s": 0.1,
    "stale_after_s": 0.1,
    "linger_s": 30,
    "log_hold_s": 0.05,
    "gateway_retry_s": 0.1,
    "drain_s": 2,
}
"""Small timings; a run stays resident unless a test says otherwise. A lease outlasts a stall of the machine: half of it
gone by means calls that are not sent, all of it runs that others take."""


class Tools(ScriptedAgent):
    """An agent's tools: ``ok`` answers at once, ``gated`` waits for ``gate``, ``talking`` says its lines first."""

    def __init__(self) -> None:
        super().__init__(AGENT)
        self.gate = asyncio.Event()
        self.running = self.most_running = 0
        for function in (self._ok, self._gated, self._talking, self._failing):
            self.tool(function.__name__.removeprefix("_"), function)

    async def _ok(self, arguments: Json | None, emit: Emit) -> Json:
        for _ in range(5):  # so that the agent's own first CHUNK goes out before the RESULT
            await asyncio.sleep(0)
        return text_result("ok")

    async def _gated(self, arguments: Json | None, emit: Emit) -> Json:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        return text_result("at last")

    async def _talking(self, arguments: Json | None, emit: Emit) -> Json:
        for line in (arguments or {}).get("lines", ()):
            emit("stdout", f"{line}\n")
        return await self._gated(arguments, emit)

    async def _failing(self, arguments: Json | None, emit: Emit) -> Json:
        raise ToolFailure("it broke")


def step(step_id: str, tool: str = "ok", *, manual: bool = False, goes_on: bool = False, **config: Any) -> Json:
    """The JSON of one step; ``config`` goes into its tool_config."""
    return {
        "id": step_id,
        "name": f"Step {step_id}",
        "tool_config": {"agent_id": AGENT, "tool_name": tool, **config},
        "approval_policy": "manual" if manual else "auto",
        "on_error": "continue" if goes_on else "stop",
    }


def count(name: str, **labels: str) -> float:
    """A metric's value. All nodes of this process share them: compare two counts."""
    return telemetry.registry.get_sample_value(name, labels) or 0.0


@dataclass(slots=True)
class Node:
    """One runner with connections of its own."""

    name: str
    runner: Runner
    connections: AsyncExitStack
    running: asyncio.Task[None]

    async def drain(self) -> None:
        """Leave as at SIGTERM."""
        await self.runner.drain()
        await self.crash()

    async def crash(self) -> None:
        """Stop here and now, giving nothing back: leases, owners and beacons stay until they run out."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.connections.aclose()

    @property
    def healthy(self) -> bool:
        return not self.running.done()


@dataclass(slots=True)
class Rig:
    """Everything that a test may touch."""

    database: str
    redis_url: str
    pool: Pool
    redis: Client
    keys: Keys
    gateway: DevGateway
    tools: Tools
    nodes: list[Node] = field(default_factory=list)

    async def start(self, name: str = "n1", *, limits: Limits | None = None, hears: bool = True, **more: Any) -> Node:
        """A node that runs (and hears the Gateway). ``limits`` are the machine's, some of which are no settings."""
        where = {"postgres_url": self.database, "redis_url": self.redis_url, "gateway_url": self.gateway.url}
        settings = load(**QUICK | where | {"node_name": name} | more)
        async with AsyncExitStack() as stack:
            store = settings.store
            url, pooled = store.postgres_url.get_secret_value(), store.postgres_pooled
            pool = await open_pool(url, size=store.postgres_pool, patience_s=10, pooled=pooled)
            stack.push_async_callback(pool.close)
            redis = await open_client(self.redis_url, patience_s=10)
            stack.push_async_callback(redis.close)
            lanes = [Lane(url, pooled=pooled) for _ in range(store.journal_lanes)]
            for lane in lanes:
                stack.push_async_callback(lane.close)
            gateways = gateways_by(settings)
            stack.push_async_callback(gateways.aclose)
            runner = Runner(settings, pool, redis, self.keys, gateways, lanes)
            if limits is not None:
                runner._host._limits = limits
            node = Node(name, runner, stack.pop_all(), asyncio.create_task(_run(runner), name=name))
        self.nodes.append(node)
        if hears:
            await eventually(lambda: runner.hears, what=f"{name} hearing the Gateway")
        return node

    async def bind(self) -> None:
        """Give the agent to the user now; else their first run does, which is then looked at once more for it."""
        await self.pool.execute("SELECT tests_free_agents($1, $2)", USER, json.dumps({"steps": [step("any")]}))

    async def create(self, *steps: Json, ring: bool = True) -> RunId:
        """A run of these steps, as the API creates it; without ``ring`` the bell is lost."""
        run_id, spec = RunId(uuid7.uuid7()), parse_spec({"title": "A workflow", "steps": list(steps)})
        await Runs(self.pool).create(
            run_id=run_id,
            workflow_id=uuid7.uuid7(),
            user_id=USER,
            nonce=secrets.token_bytes(16),
            snapshot=spec.model_dump_json(),
            command_id=uuid7.uuid7(),
            origin=ORIGIN,
        )
        if ring:
            await self.ring(run_id)
        return run_id

    async def ring(self, run_id: RunId) -> None:
        await Inbox(self.redis, self.keys, bound=1000).ring(run_id)

    async def say(self, run_id: RunId, kind: CommandKind, *, ring: bool = True, **payload: Any) -> CommandId:
        """A command of somebody who sees the run as it stands."""
        command_id, head = CommandId(uuid7.uuid7()), await self.head(run_id)
        seen = head.paused_seq if head.status == "paused" and kind != "cancel" else None
        await Commands(self.pool).add(
            NewCommand(id=command_id, run_id=run_id, kind=kind, payload=payload, seen_seq=seen, origin=ORIGIN)
        )
        if ring:
            await self.ring(run_id)
        return command_id

    async def head(self, run_id: RunId) -> RunHead:
        head = await Runs(self.pool).head(run_id, by=Caller(USER))
        assert head is not None
        return head

    async def until(
        self, run_id: RunId, status: str, *, reason: str | None = None, within_s: float = PATIENCE_S
    ) -> RunHead:
        """The run, once it has this status (and is paused for this reason)."""

        async def there() -> RunHead | None:
            assert all(node.healthy for node in self.nodes), "a node died"
            head = await self.head(run_id)
            return head if head.status == status and reason in (None, head.paused_reason) else None

        return await eventually(there, within_s=within_s, what=f"{run_id} being {status}")

    async def events(self, run_id: RunId, event_type: str | None = None) -> list[dict[str, Any]]:
        """Payloads of the run's log with their time (``at``, s), in order; dense, or this fails."""
        rows = await self.pool.fetch(
            "SELECT seq, payload, created_at FROM workflow_run_events WHERE run_id = $1 ORDER BY seq", run_id
        )
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        told = [orjson.loads(row["payload"]) | {"at": row["created_at"].timestamp()} for row in rows]
        return [one for one in told if event_type in (None, one["type"])]

    async def told(self, run_id: RunId, event_type: str, times: int = 1) -> list[dict[str, Any]]:
        """The events of a type, once there are so many."""

        async def there() -> list[dict[str, Any]] | None:
            found = await self.events(run_id, event_type)
            return found if len(found) >= times else None

        return await eventually(there, what=f"{times} × {event_type}")

    async def row(self, run_id: RunId) -> dict[str, Any]:
        """The hot row."""
        return dict(await self.pool.fetchrow("SELECT * FROM workflow_runs WHERE id = $1", run_id))

    async def passive(self, run_id: RunId) -> dict[str, Any]:
        """The hot row, once the run was owned, nobody owns it any more, and nobody holds its lease."""

        async def there() -> dict[str, Any] | None:
            row = await self.row(run_id)
            held = await self.redis.redis.exists(self.keys.lease(run_id))
            return row if row["epoch"] and row["owner"] is None and not held else None

        return await eventually(there, what=f"{run_id} being passive")

    async def executing(self, calls: int) -> None:
        """Wait until so many calls have begun at the tool side."""
        await eventually(lambda: len(self.gateway.ledger) >= calls, what=f"{calls} calls begun")

    def executions(self) -> Counter[str]:
        """How often each call (req_id) was executed."""
        return Counter(one.req_id for one in self.gateway.ledger)

    def never_twice(self, calls: int) -> None:
        """So many calls were executed, each of them once."""
        assert set(self.executions().values()) <= {1}
        assert len(self.gateway.ledger) == calls


async def _run(runner: Runner) -> None:
    async with asyncio.TaskGroup() as group:
        for name, part in runner.parts().items():
            group.create_task(part, name=name)


@asynccontextmanager
async def rig(database: str, redis_url: str, prefix: str) -> AsyncIterator[Rig]:
    """No node yet. On leaving, whatever still runs crashes; a node that died by itself fails the test."""
    gateway, tools = DevGateway(), Tools()
    gateway.add_agent(tools)
    await gateway.start(port=free_port())
    pool, redis = await open_pool(database, size=3, patience_s=10), await open_client(redis_url, patience_s=10)
    opened = Rig(database, redis_url, pool, redis, Keys(prefix), gateway, tools)
    try:
        yield opened
    finally:
        died = [
            node.running.exception() for node in opened.nodes if node.running.done() and not node.running.cancelled()
        ]
        for node in opened.nodes:
            if node.healthy:
                await node.crash()
        tools.gate.set()
        await gateway.stop()
        await redis.close()
        await pool.close()
    assert died == []
