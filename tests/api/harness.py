"""A whole node in this process, over real Postgres and Valkey and the dev Gateway, and how tests speak to it.

``stack()`` opens everything and closes it again; a ``Stack`` is what tests hold. ``Watch`` reads one event stream as a
browser would. Used by ``tests/api`` and ``tests/e2e``; asserts nothing by itself but that what is awaited comes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
import asyncpg

from daemon.api.context import CONTEXT, Context
from daemon.auth.tokens import mint
from daemon.config import Settings, load
from daemon.dev.agent import Emit
from daemon.dev.envelope import Json
from daemon.dev.gateway import DevGateway
from daemon.dev.processes import free_port
from daemon.dev.scripted_agent import ScriptedAgent, ToolFailure, text_result
from daemon.node import Node, open_node
from tests.api.declared import assert_declared
from tests.patience import PATIENCE_S, eventually

SECRET = "the tests' secret, which is long enough for HS256"
POLL_S = 0.02
AGENT = "agent-1"

QUICK: dict[str, Any] = {
    "jwt_secret": SECRET,
    "port": 0,
    "node_name": "node-1",
    "postgres_pool": 5,
    "start_patience_s": 15,
    "lease_ttl_s": 15,
    "sweep_period_s": 0.1,
    "stale_after_s": 0.1,
    "linger_s": 0.3,
    "log_hold_s": 0.05,
    "sse_heartbeat_s": 0.25,
    "sse_close_s": 0.2,
    "gateway_retry_s": 0.1,
    "drain_s": 2,
    "verdict_wait_s": 20,
}
"""Small timings, so that what takes seconds in production takes moments here. Not the lease: a machine that stalls for
half of it leaves a mark in the log of each run (``tool.unsent``), and tests compare logs."""


class Interval(NamedTuple):
    """When a tool really ran, in monotonic seconds; ``how`` is ok, error or canceled."""

    tool: str
    began: float
    ended: float
    how: str


class Tools(ScriptedAgent):
    """An agent whose tools do what their names say, and the ledger of when they ran.

    ok · slow (until ``release`` is set) · failing (until ``healthy``) · is_error · streaming {lines, width, pace_ms} ·
    big {characters}
    """

    def __init__(self, agent_id: str = AGENT) -> None:
        super().__init__(agent_id)
        self.intervals: list[Interval] = []
        self.running: list[str] = []
        self.release = asyncio.Event()
        self.healthy = False
        for function in (self._ok, self._slow, self._failing, self._is_error, self._streaming, self._big):
            self.tool(function.__name__.removeprefix("_"), self._timed(function))

    def _timed(self, function: Callable[[Json, Emit], Any]) -> Callable[[Json | None, Emit], Any]:
        name = function.__name__.removeprefix("_")

        async def timed(arguments: Json | None, emit: Emit) -> Json:
            began, how = time.monotonic(), "error"
            self.running.append(name)
            try:
                result: Json = await function(arguments or {}, emit)
                how = "ok"
            except asyncio.CancelledError:
                how = "canceled"
                raise
            else:
                return result
            finally:
                self.running.remove(name)
                self.intervals.append(Interval(name, began, time.monotonic(), how))

        return timed

    async def _ok(self, arguments: Json, emit: Emit) -> Json:
        return text_result("ok")

    async def _slow(self, arguments: Json, emit: Emit) -> Json:
        emit("stdout", "slowly\n")
        await self.release.wait()
        return text_result("at last")

    async def _failing(self, arguments: Json, emit: Emit) -> Json:
        if not self.healthy:
            raise ToolFailure("it broke")
        return text_result("mended")

    async def _is_error(self, arguments: Json, emit: Emit) -> Json:
        return text_result("the disk is full", is_error=True)

    async def _streaming(self, arguments: Json, emit: Emit) -> Json:
        lines, width = int(arguments.get("lines", 5)), int(arguments.get("width", 20))
        for number in range(lines):
            emit("stdout", f"{number:06d} ".ljust(width, ".") + "\n")
            await asyncio.sleep(arguments.get("pace_ms", 0) / 1000)
        return text_result(f"{lines} lines")

    async def _big(self, arguments: Json, emit: Emit) -> Json:
        return text_result("x" * int(arguments.get("characters", 10_000)))


class LoudGateway(DevGateway):
    """The dev Gateway, remembering every envelope that was published."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.published: list[Json] = []

    def publish(self, event: Json) -> None:
        self.published.append(event)
        super().publish(event)

    def of(self, kind: str) -> list[Json]:
        """The envelopes of one type."""
        return [event for event in self.published if event["type"] == kind]


def step(step_id: str, tool: str = "ok", *, agent: str = AGENT, **more: Any) -> dict[str, Any]:
    """One step of a spec; ``more`` goes where it belongs: tool_config's own fields into it, the others beside it."""
    config: dict[str, Any] = {"agent_id": agent, "tool_name": tool}
    config |= {name: more.pop(name) for name in ("arguments", "timeout_ms", "stream") if name in more}
    return {"id": step_id, "name": f"Step {step_id}", "tool_config": config, **more}


class Frame(NamedTuple):
    """One frame of an event stream; what it did not carry is None."""

    id: str | None = None
    event: str | None = None
    data: Any = None
    comment: str | None = None
    retry: int | None = None


class Watch:
    """One event stream, read frame by frame; ``events`` are the run events seen so far."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.frames: list[Frame] = []
        self.events: list[dict[str, Any]] = []

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]

    @property
    def types(self) -> list[str]:
        return [event["event_type"] for event in self.events]

    async def frame(self, within_s: float = PATIENCE_S) -> Frame:
        """The next frame. Raises EOFError when the stream has ended."""
        told: dict[str, Any] = {}
        async with asyncio.timeout(within_s):
            while line := (await self.response.content.readline()).decode():
                name, _, value = line.rstrip("\n").partition(":")
                value = value.removeprefix(" ")
                if line == "\n":
                    break
                told["comment" if name == "" else name] = value
            else:
                raise EOFError
        if "data" in told:
            told["data"] = json.loads(told["data"])
        if "retry" in told:
            told["retry"] = int(told["retry"])
        frame = Frame(**told)
        self.frames.append(frame)
        if frame.data is not None and frame.data["type"] == "run.event":
            self.events.append(frame.data)
        return frame

    async def until(self, event_type: str, *, count: int = 1, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """The data of the ``count``-th frame of this type, seen already or yet to come."""
        while True:
            fitting = [frame.data for frame in self.frames if frame.event == event_type]
            if len(fitting) >= count:
                data: dict[str, Any] = fitting[count - 1]
                return data
            await self.frame(within_s)

    async def rest(self, within_s: float = PATIENCE_S) -> list[dict[str, Any]]:
        """All run events, once the server has ended the stream."""
        async with asyncio.timeout(within_s):
            while True:
                try:
                    await self.frame(within_s)
                except EOFError:
                    return self.events


def assert_each_once(seqs: list[int], *, after: int = 0, end: int) -> None:
    """Every seq after ``after`` once and in order, at least up to ``end``; what follows the end may come late."""
    assert seqs == list(range(after + 1, after + 1 + len(seqs)))
    assert seqs[-1] >= end


@dataclass(slots=True)
class Answer:
    """Status, headers and decoded body of an exchange."""

    status: int
    headers: Any
    body: Any


@dataclass(slots=True)
class Stack:
    """Everything that a test may touch."""

    base: str
    http: aiohttp.ClientSession
    gateway: LoudGateway
    tools: Tools
    database: str
    settings: Settings
    node: Node | None = None
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def context(self) -> Context:
        """What the node's handlers reach for."""
        assert self.node is not None
        return self.node._front.app[CONTEXT]

    def token(self, sub: str = "ann", *, lifetime_s: int = 600) -> str:
        return mint(sub, SECRET, lifetime_s=lifetime_s)

    def headers(self, sub: str = "ann", **more: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens.setdefault(sub, self.token(sub))}", **more}

    async def ask(self, method: str, path: str, *, sub: str = "ann", **more: Any) -> Answer:
        """One exchange as ``sub``, answered as its route declares; JSON bodies are decoded, others given as text."""
        headers = self.headers(sub) | more.pop("headers", {})
        timeout = aiohttp.ClientTimeout(total=60)
        async with self.http.request(method, self.base + path, headers=headers, timeout=timeout, **more) as answer:
            raw = await answer.read()
            assert_declared(method, path, answer.status, answer.content_type, raw)
            is_json = answer.content_type in ("application/json", "application/problem+json")
            return Answer(answer.status, answer.headers, json.loads(raw) if is_json else raw.decode())

    async def post(self, path: str, body: Any = None, *, sub: str = "ann") -> Answer:
        return await self.ask("POST", path, sub=sub, **({} if body is None else {"json": body}))

    async def workflow(self, *steps: dict[str, Any], sub: str = "ann") -> str:
        """The id of a stored workflow of these steps."""
        made = await self.post("/v1/workflows", {"title": "A workflow", "spec": {"steps": list(steps)}}, sub=sub)
        assert made.status == 200, made.body
        workflow_id: str = made.body["workflow_id"]
        return workflow_id

    async def start(self, *steps: dict[str, Any], sub: str = "ann") -> str:
        """The id of a run of these steps, just created."""
        made = await self.post("/v1/workflow-runs", {"workflow_id": await self.workflow(*steps, sub=sub)}, sub=sub)
        assert made.status == 200, made.body
        run_id: str = made.body["run_id"]
        return run_id

    async def run(self, run_id: str, *, sub: str = "ann") -> dict[str, Any]:
        found = await self.ask("GET", f"/v1/workflow-runs/{run_id}", sub=sub)
        assert found.status == 200, found.body
        body: dict[str, Any] = found.body
        return body

    async def until(self, run_id: str, *statuses: str, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """The run, once its status is one of these."""

        async def there() -> dict[str, Any] | None:
            run = await self.run(run_id)
            return run if run["status"] in statuses else None

        found = await eventually(there, within_s=within_s, what=f"{run_id} being {statuses}")
        assert found is not None
        return found

    async def at_rest(self, run_id: str, status: str, step_id: str) -> dict[str, Any]:
        """The run, once it has this status and the log of its last call, ``step_id``, has come: nothing is on its way.

        An agent's CHUNKs come in order, and each call has at least one.
        """

        async def there() -> dict[str, Any] | None:
            run = await self.run(run_id)
            attempts = run["steps_state"][step_id]["attempts"]
            return run if run["status"] == status and attempts and attempts[-1]["log_preview"] else None

        found = await eventually(there, within_s=PATIENCE_S, what=f"{run_id} at rest, {status}")
        assert found is not None
        return found

    async def end_of(self, run_id: str) -> int:
        """The seq of the terminal event; late log lines may follow it."""
        ends = ("run.completed", "run.failed", "run.canceled")
        return next(event["seq"] for event in await self.log(run_id) if event["event_type"] in ends)

    async def decide(self, run_id: str, verb: str, body: Any = None, *, sub: str = "ann") -> Answer:
        return await self.post(f"/v1/workflow-runs/{run_id}/{verb}", body, sub=sub)

    @asynccontextmanager
    async def watch(self, run_id: str, *, query: str = "", sub: str = "ann", **headers: str) -> AsyncIterator[Watch]:
        """An event stream of a run, which must be granted; ``headers`` such as ``Last_Event_ID``."""
        given = self.headers(sub) | {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{self.base}/v1/workflow-runs/{run_id}/events{query}"
        async with self.http.get(url, headers=given, timeout=aiohttp.ClientTimeout(total=None)) as response:
            assert response.status == 200, await response.text()
            yield Watch(response)

    async def log(self, run_id: str) -> list[dict[str, Any]]:
        """Everything that is in a run's log now, by its replay."""
        async with self.watch(run_id) as watch:
            await watch.until("replay.done")
            return watch.events

    async def sql(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """Rows straight from the database."""
        connection = await asyncpg.connect(self.database)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Node]:
    """A node that serves; drained and closed on leaving."""
    async with open_node(settings) as node:
        started = asyncio.Event()
        running = asyncio.create_task(node.run(started), name="node")
        starting = asyncio.create_task(started.wait())
        await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
        starting.cancel()
        if running.done():
            running.result()
        try:
            yield node
        finally:
            await node.drain()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def stack(database: str, redis_url: str, redis_prefix: str, **overrides: Any) -> AsyncIterator[Stack]:
    """A node with the dev Gateway and one agent; ``overrides`` are settings. ``gateway_url`` leaves the Gateway out."""
    gateway, tools = LoudGateway(), Tools()
    gateway.add_agent(tools)
    absent = "gateway_url" in overrides
    url = overrides.pop("gateway_url") if absent else await gateway.start(port=free_port())
    try:
        where = {"postgres_url": database, "redis_url": redis_url, "redis_prefix": redis_prefix, "gateway_url": url}
        settings = load(**QUICK | where | overrides)
        async with (
            serving(settings) as node,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            if not absent:
                await eventually(lambda: bool(gateway._subscribers), what="the node hearing the Gateway")
            try:
                yield Stack(node.url, http, gateway, tools, database, settings, node)
            finally:
                tools.release.set()
    finally:
        await gateway.stop()
