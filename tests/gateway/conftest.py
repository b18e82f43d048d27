"""The Gateway under test: the one at GATEWAY_URL (with GATEWAY_TOKEN and GATEWAY_AGENT), else our dev Gateway.

Every test of this room runs on asyncio's own loop and on uvloop, which ``runwarden dev`` uses.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import uvloop

from daemon.dev.gateway import DevGateway
from daemon.dev.processes import free_port
from daemon.dev.scripted_agent import ScriptedAgent, text_result
from tests.patience import PATIENCE_S


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


API = "/internal/bridge"
ECHO = "bridge__echo"


def error(code: str) -> bytes:
    """The body of an error."""
    return b'{"error":"%s"}\n' % code.encode()


class Stream:
    """One SSE subscription: every frame as it came, and the envelopes among them."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.events: list[dict[str, Any]] = []

    async def frame(self) -> str:
        """The next frame, without its closing blank line."""
        lines: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while (line := (await self.response.content.readline()).decode()) != "\n":
                if not line:
                    raise EOFError
                lines.append(line.rstrip("\n"))
        return "\n".join(lines)

    async def event(self) -> dict[str, Any]:
        """The next envelope; heartbeats are passed over."""
        while True:
            frame = await self.frame()
            if frame.startswith("event: bridge\ndata: "):
                self.events.append(json.loads(frame.removeprefix("event: bridge\ndata: ")))
                return self.events[-1]

    async def until(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first envelope, seen already or yet to come, that fits."""
        for seen in self.events:
            if fits(seen):
                return seen
        while not fits(event := await self.event()):
            pass
        return event

    async def one(self, kind: str, req_id: str) -> dict[str, Any]:
        """The first envelope of a type and call."""
        return await self.until(lambda event: event["type"] == kind and event.get("req_id") == req_id)


class Wire:
    """Plain HTTP to one Gateway."""

    def __init__(self, http: aiohttp.ClientSession, base: str, agent: str, token: str) -> None:
        self.http, self.base, self.agent, self.token = http, base, agent, token

    async def ask(self, method: str, path: str, **more: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        """One exchange; the answer and its body."""
        headers = more.pop("headers", {"X-Internal-Token": self.token})
        async with self.http.request(method, self.base + path, headers=headers, **more) as answer:
            return answer, await answer.read()

    async def invoke(self, tool: str, arguments: Any = None, *, req_id: str | None = None, **more: Any) -> str:
        """An accepted invoke; its req_id."""
        req_id = req_id or secrets.token_hex(8)
        body = {"req_id": req_id, "agent_id": self.agent, "tool_name": tool, "arguments": arguments, **more}
        answer, said = await self.ask("POST", f"{API}/invoke", json=body)
        assert (answer.status, json.loads(said)) == (202, {"req_id": req_id, "status": "accepted"})
        return req_id

    async def cancel(self, req_id: str) -> None:
        """An accepted cancel."""
        answer, said = await self.ask("POST", f"{API}/cancel", json={"req_id": req_id, "agent_id": self.agent})
        assert (answer.status, json.loads(said)) == (202, {"req_id": req_id, "status": "sent"})

    @asynccontextmanager
    async def subscribed(self, method: str = "GET", **filters: str) -> AsyncIterator[Stream]:
        """A subscription that is active: its ``ready`` has been read."""
        headers = {"X-Internal-Token": self.token}
        timeout = aiohttp.ClientTimeout(total=None)
        url = f"{self.base}{API}/events"
        async with self.http.request(method, url, params=filters, headers=headers, timeout=timeout) as response:
            assert response.status == 200
            stream = Stream(response)
            assert await stream.frame() == "event: ready\ndata: {}"
            yield stream


class Dev:
    """A dev Gateway, for tests that must arrange what a client cannot, and the wire to it."""

    def __init__(self, gateway: DevGateway, wire: Wire) -> None:
        self.gateway, self.wire = gateway, wire
        self.finish = asyncio.Event()  # lets the tool "wait" end
        self.started = asyncio.Event()  # set by the tool "wait"
        self.log: Callable[[str, str], None] = lambda _channel, _text: None


class LoggingAgent(ScriptedAgent):
    """A scripted agent that remembers how to log outside a call."""

    log: Callable[[str, str], None]

    async def start(self, log: Callable[[str, str], None]) -> None:
        self.log = log


@asynccontextmanager
async def dev_gateway(http: aiohttp.ClientSession, **options: Any) -> AsyncIterator[Dev]:
    """A started dev Gateway with one agent and the tools the suite needs."""
    gateway = DevGateway(**options)
    agent = LoggingAgent("agent-1")
    dev = Dev(gateway, Wire(http, "", agent.agent_id, options.get("token", "")))

    async def wait(arguments: dict[str, Any] | None, emit: Callable[[str, str], None]) -> dict[str, Any]:
        dev.started.set()
        await dev.finish.wait()
        return text_result("done")

    async def say(arguments: dict[str, Any] | None, emit: Callable[[str, str], None]) -> dict[str, Any]:
        for text in (arguments or {})["texts"]:
            emit("stdout", text)
        return text_result("said")

    async def fail(arguments: dict[str, Any] | None, emit: Callable[[str, str], None]) -> dict[str, Any]:
        return text_result("Error executing tool fail", is_error=True)

    async def crash(arguments: dict[str, Any] | None, emit: Callable[[str, str], None]) -> dict[str, Any]:
        raise RuntimeError("the tool broke")

    agent.tool("wait", wait, annotations={"readOnlyHint": True})
    agent.tool("say", say)
    agent.tool("fail", fail)
    agent.tool("crash", crash)
    gateway.add_agent(agent)
    dev.wire.base = await gateway.start(port=free_port())
    dev.log = agent.log
    try:
        yield dev
    finally:
        await gateway.stop()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.fixture
async def dev(http: aiohttp.ClientSession) -> AsyncIterator[Dev]:
    """The dev Gateway from the inside, and ``dev.wire`` to speak to it."""
    async with dev_gateway(http, token="internal") as started:
        yield started


@pytest.fixture
async def wire(http: aiohttp.ClientSession) -> AsyncIterator[Wire]:
    """The Gateway under test from the outside."""
    if url := os.environ.get("GATEWAY_URL"):
        yield Wire(http, url.rstrip("/"), os.environ["GATEWAY_AGENT"], os.environ["GATEWAY_TOKEN"])
        return
    async with dev_gateway(http, token="internal") as started:
        yield started.wire
