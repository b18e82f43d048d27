"""The dev Gateway: the internal HTTP side of the Gateway's contract, over agents inside this process.

Its sentences are those of the contract (§1 calls and errors, §2 SSE, §3 envelopes, §4 semantics); ``tests/gateway``
shows each of them here and, given a URL, at a real Gateway. ``daemon/cli`` and tests start it. It is honest about
what it is not: there is no websocket tunnel; agents never disconnect by themselves. Redis mode is in ``gateway_redis``.

For tests it keeps a ``ledger`` of what really ran and has ``weather`` that can be made bad, also by PUT /dev/weather.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from aiohttp import web
from redis.exceptions import RedisError

from daemon.dev.agent import LocalAgent
from daemon.dev.envelope import Json, encode, envelope
from daemon.dev.gateway_redis import RedisMode
from daemon.dev.handshake import Door
from daemon.dev.mischief import flood, follow
from daemon.dev.replies import (
    CANCEL_FIELDS,
    INVOKE_FIELDS,
    bare_headers,
    error_answer,
    fields,
    json_answer,
    page_not_found,
    unknown_path,
)
from daemon.dev.subscriber import HEADERS, Subscriber
from daemon.dev.tunnel import Execution, Tunnel
from daemon.dev.weather import Weather, parse
from daemon.errors import SetupError

_STORED_RESULTS = 10_000
_RESULT_TTL_S = 86_400.0


class DevGateway:
    """``add_agent`` first, then ``start``; one event loop, one process.

    ``token``: what ``X-Internal-Token`` must be, empty for open. ``agent_token_secret``: agents are let in by their
    tokens only (§8); empty: all are. ``results``: whether ``/results`` has a store behind it or answers 501. ``redis``:
    Redis mode, with the store there. ``sse_buffer``: messages kept for each subscriber. ``heartbeat_s``: 0 for none.
    """

    def __init__(
        self,
        *,
        token: str = "",
        agent_token_secret: str = "",
        results: bool = True,
        redis: RedisMode | None = None,
        sse_buffer: int = 512,
        heartbeat_s: float = 15.0,
    ) -> None:
        self.ledger: list[Execution] = []
        self.weather = Weather()
        self.url = ""
        self._token = token
        self._door = Door(agent_token_secret, redis.token_version if redis is not None else None)
        self._sse_buffer = sse_buffer
        self._heartbeat_s = heartbeat_s
        self._results = _ResultStore() if results and redis is None else None
        self._redis = redis
        self._agents: list[LocalAgent] = []
        self._tunnels: dict[str, Tunnel] = {}
        self._subscribers: dict[Subscriber, web.Request] = {}
        self._runner: web.AppRunner | None = None
        self._restarting: asyncio.Task[None] | None = None

    def add_agent(self, agent: LocalAgent) -> None:
        """Names an agent that connects when the Gateway starts; later ones come by ``connect``."""
        if self._runner is not None:
            raise SetupError("the dev Gateway already runs: use `await gateway.connect(agent)`")
        self._agents.append(agent)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens, connects the agents in parallel, and returns the base URL. ``SetupError`` if the port is taken."""
        await self._listen(host, port)
        if self._redis is not None:
            self._redis.start(lambda agent_id: self._tunnels.get(agent_id), self._offer)
        try:
            await asyncio.gather(*(self.connect(agent) for agent in self._agents))
        except BaseException:
            await self.stop()
            raise
        return self.url

    async def _listen(self, host: str, port: int) -> None:
        runner = web.AppRunner(self._app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            await site.start()
        except OSError as fault:
            await runner.cleanup()
            if fault.errno == errno.EADDRINUSE:
                raise SetupError(f"the dev Gateway cannot listen: port {port} of {host} is already in use") from fault
            raise SetupError(f"the dev Gateway cannot listen on {host}:{port}: {fault}") from fault
        self._runner = runner
        self.url = f"http://{host}:{runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Goes away as the real one does: streams end with a bare EOF, nothing is announced. Stops the agents."""
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})
        self._end_streams()
        tunnels, self._tunnels = list(self._tunnels.values()), {}
        await asyncio.gather(*(tunnel.close() for tunnel in tunnels))
        if self._redis is not None:
            await self._redis.stop()
        await self._stop_listening()

    async def restart(self) -> None:
        """Goes away and comes back at the same address; agents lose their calls, reconnect, and tell so then."""
        host, port = self.url.removeprefix("http://").rsplit(":", 1)
        self._end_streams()
        await asyncio.gather(*(tunnel.cut(announced=False) for tunnel in self._tunnels.values()))
        await self._stop_listening()
        await self._listen(host, int(port))
        await asyncio.gather(*(tunnel.come_back() for tunnel in self._tunnels.values()))

    def _restart_soon(self) -> None:
        self._restarting = asyncio.create_task(self.restart(), name="restart of the dev Gateway")

    def _end_streams(self) -> None:
        for request in self._subscribers.values():
            if request.transport is not None:
                request.transport.abort()

    async def _stop_listening(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def connect(self, agent: LocalAgent) -> None:
        """An agent connects: listed at once, with ``"tools": null`` until it has started. Raises TokenRefused."""
        if agent.agent_id in self._tunnels:
            raise SetupError(f"an agent called {agent.agent_id} is already connected")
        await self._door.admit(agent)
        tunnel = Tunnel(agent, self.publish, self.ledger, self.weather, self._door)
        self._tunnels[agent.agent_id] = tunnel
        if self._redis is not None:
            self._redis.joined(agent.agent_id)
        await tunnel.open()

    async def disconnect(self, agent_id: str) -> None:
        """An agent's connection ends: its calls are cancelled without a RESULT, and DISCONNECT is published."""
        tunnel = self._tunnels.pop(agent_id)
        self.publish(envelope("DISCONNECT", agent_id, None, None))
        if self._redis is not None:
            self._redis.left(agent_id)
        await tunnel.close()

    def publish(self, event: Json) -> None:
        """Takes an event from an agent (or a test): stores a RESULT, then offers it to every subscriber."""
        if self._redis is not None:
            self._redis.take(event)
            return
        encoded = encode(event)
        if event["type"] == "RESULT" and self._results is not None and event.get("req_id"):
            self._results.put(event["req_id"], encoded)
        self._offer(event, encoded)

    def _offer(self, event: Json, encoded: bytes) -> None:
        """To the subscribers, and then what bad weather lets follow."""
        if self.weather.reaches_subscribers(event):
            for subscriber in self._subscribers:
                subscriber.offer(event, encoded)
        for noise in flood(event, self.weather, self._sse_buffer):
            for subscriber in self._subscribers:
                subscriber.offer(noise, encode(noise))
        follow(event, self.weather, publish=self.publish, restart=self._restart_soon)

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=0)  # the Gateway does not limit bodies
        app.on_response_prepare.append(bare_headers)
        internal: list[tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("/internal/bridge/agents", self._list_agents),
            ("/internal/bridge/agents/{rest:.*}", self._list_tools),
            ("/internal/bridge/invoke", self._invoke),
            ("/internal/bridge/cancel", self._cancel),
            ("/internal/bridge/results/{req_id:.*}", self._stored_result),
            ("/internal/bridge/events", self._events),
            ("/dev/weather", self._tell_weather),
        ]
        for path, handler in internal:
            app.router.add_route("*", path, self._guarded(handler))
        app.router.add_route("*", "/bridge/tunnel", _no_tunnel)
        app.router.add_route("*", "/{rest:.*}", unknown_path)
        return app

    def _guarded(
        self, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """The token is checked before the method and before the body."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            given = request.headers.get("X-Internal-Token", "")
            if self._token and not hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode()):
                return web.Response(status=401)
            return await handler(request)

        return guarded

    async def _list_agents(self, _request: web.Request) -> web.StreamResponse:
        listed = [
            {
                "agent_id": agent_id,
                "status": "online",
                "last_seen_at": tunnel.last_seen_at,
                "connected_at": tunnel.connected_at,
            }
            for agent_id, tunnel in self._tunnels.items()
            if tunnel.online
        ]
        if self._redis is not None:
            listed += await self._redis.cached(
                {agent_id for agent_id, tunnel in self._tunnels.items() if tunnel.online}
            )
        return json_answer(200, {"agents": listed})

    async def _list_tools(self, request: web.Request) -> web.StreamResponse:
        agent_id, _, rest = request.match_info["rest"].partition("/")
        if request.method != "GET" or not agent_id or rest != "tools":
            return await unknown_path(request)
        tunnel = self._online(agent_id)
        if tunnel is None:
            return error_answer(404, "agent_offline")
        return json_answer(200, {"agent_id": agent_id, "tools": tunnel.tools})

    async def _invoke(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        body = fields(await request.read(), INVOKE_FIELDS)
        if body is None:
            return error_answer(400, "invalid_json")
        if not (body["req_id"] and body["agent_id"] and body["tool_name"]):
            return error_answer(400, "missing_fields")
        if (odd := self._odd_answer(body["agent_id"])) is not None:
            return odd
        tunnel = self._online(body["agent_id"])
        if tunnel is None:
            return error_answer(404, "agent_offline")
        tool: Json = {"name": body["tool_name"]}
        if body["arguments"]:
            tool["args"] = body["arguments"]
        payload: Json = {"tool": tool, "stream": {"enabled": body["stream"]}}
        if body["timeout_ms"]:
            payload["timeout_ms"] = body["timeout_ms"]
        invoke = envelope("INVOKE", body["agent_id"], body["req_id"], payload)
        if self.weather.reaches_agent(invoke):
            await tunnel.deliver(invoke)
        return json_answer(202, {"req_id": body["req_id"], "status": "accepted"})

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(status=405)
        body = fields(await request.read(), CANCEL_FIELDS)
        if body is None:
            return error_answer(400, "invalid_json")
        if not (body["req_id"] and body["agent_id"]):
            return error_answer(400, "missing_fields")
        if (odd := self._odd_answer(body["agent_id"])) is not None:
            return odd
        tunnel = self._online(body["agent_id"])
        if tunnel is None:
            return error_answer(404, "agent_offline")
        await tunnel.deliver(envelope("CANCEL", body["agent_id"], body["req_id"], {}))
        return json_answer(202, {"req_id": body["req_id"], "status": "sent"})

    def _online(self, agent_id: str) -> Tunnel | None:
        tunnel = self._tunnels.get(agent_id)
        return tunnel if tunnel is not None and tunnel.online else None

    def _odd_answer(self, agent_id: str) -> web.Response | None:
        """What a call is answered in weather that keeps it from the agent's connection."""
        if self.weather.holds("plain_404", agent_id):
            return page_not_found()
        if self.weather.holds("ghost_agent", agent_id):
            return error_answer(502, "send_failed")
        return None

    async def _stored_result(self, request: web.Request) -> web.StreamResponse:
        req_id = request.match_info["req_id"].strip("/")
        if request.method != "GET":
            return web.Response(status=405)
        if not req_id:
            return await unknown_path(request)
        if self.weather.holds("no_result_store"):
            return error_answer(501, "redis_not_enabled")
        if self._redis is not None:
            try:
                stored = await self._redis.result(req_id)
            except (RedisError, OSError):
                return error_answer(502, "redis_error")
        elif self._results is None:
            return error_answer(501, "redis_not_enabled")
        else:
            stored = self._results.get(req_id)
        if stored is None:
            return error_answer(404, "not_found")
        return web.Response(status=200, body=stored, content_type="application/json")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        subscriber = Subscriber(
            agent_id=request.query.get("agent_id", ""),
            req_id=request.query.get("req_id", ""),
            buffer=self._sse_buffer,
            heartbeat_s=self._heartbeat_s,
        )
        response = web.StreamResponse(headers=HEADERS)
        response.enable_chunked_encoding()
        await response.prepare(request)
        self._subscribers[subscriber] = request
        try:
            await subscriber.serve(response)
        except ConnectionError:
            pass  # the reader went away between two writes
        finally:
            del self._subscribers[subscriber]
        return response

    async def _tell_weather(self, request: web.Request) -> web.StreamResponse:
        """No part of the contract: ``GET`` tells the weather, ``PUT`` replaces it by ``NAME[@AGENT],…``."""
        if request.method == "PUT":
            try:
                self.weather.change(*parse(await request.text()))
            except ValueError as fault:
                return web.Response(status=400, text=f"{fault}\n")
        elif request.method != "GET":
            return web.Response(status=405)
        return web.Response(text=",".join(sorted(self.weather.now)) + "\n")


class _ResultStore:
    """The last RESULT of each req_id, as Redis mode keeps it: for a day, and here for a bounded number of calls."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, tuple[float, bytes]] = OrderedDict()

    def put(self, req_id: str, encoded: bytes) -> None:
        """The last write wins."""
        self._stored.pop(req_id, None)
        self._stored[req_id] = (time.monotonic() + _RESULT_TTL_S, encoded)
        if len(self._stored) > _STORED_RESULTS:
            self._stored.popitem(last=False)

    def get(self, req_id: str) -> bytes | None:
        """The envelope as it was published, or None when there is none or it is too old."""
        expires, encoded = self._stored.get(req_id, (0.0, b""))
        return encoded if encoded and time.monotonic() < expires else None


async def _no_tunnel(_request: web.Request) -> web.StreamResponse:
    """Agents of this Gateway live in its process; nothing connects from outside."""
    return web.Response(status=426, text="Upgrade Required\n", content_type="text/plain")
