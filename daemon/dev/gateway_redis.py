"""The dev Gateway's Redis mode (contract §9): who is online, stored RESULTs, events on pub/sub, commands by stream.

``DevGateway(redis=RedisMode(url, "a"))`` hands its events over and gets each back when Redis was told or is away;
several Gateways over one Redis play the plural. What a real one loses or delays while its Redis is away is lost or
delayed here too. The log flood after a lost group is one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError, ResponseError

from daemon.dev.envelope import Json, decode, encode, envelope
from daemon.dev.tunnel import Tunnel

log = logging.getLogger(__name__)

CHANNEL = "bridge:evt"
ONLINE_TTL_S = 30
REFRESH_S = 25.0
RESULT_TTL_S = 86_400
GROUP = "gateway"
_BLOCK_MS = 200
_REST_S = 0.1

_Step = Callable[[], Awaitable[None]]


class RedisMode:
    """``--redis-url`` and ``--gateway-id`` of a Gateway. ``take`` never waits; each agent's events keep their order."""

    def __init__(self, url: str, gateway_id: str, *, refresh_s: float = REFRESH_S) -> None:
        self.gateway_id = gateway_id
        self._refresh_s = refresh_s
        retry = Retry(ConstantBackoff(0.1), 3)
        self._redis = Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=retry)
        self._tunnel_of: Callable[[str], Tunnel | None] = lambda _agent_id: None
        self._offer: Callable[[Json, bytes], None] = lambda _event, _encoded: None
        self._sessions: dict[str, str] = {}  # conn_session_id of each agent that is connected here
        self._steps: dict[str, asyncio.Queue[_Step]] = {}
        self._unacked: dict[str, dict[str, Json]] = {}  # RESULTs that were not stored, which the agent keeps
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, tunnel_of: Callable[[str], Tunnel | None], offer: Callable[[Json, bytes], None]) -> None:
        """Begins to read commands. ``offer`` gets the events back, for the subscribers. Redis may be away."""
        self._tunnel_of, self._offer = tunnel_of, offer
        self._spawn(self._commands())
        self._spawn(self._heartbeat())

    async def stop(self) -> None:
        """As a killed Gateway: what it said in Redis stays until it runs out."""
        while self._tasks:  # redis-py may swallow a cancellation, see fabric/client
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_REST_S)
        self._steps.clear()
        self._sessions.clear()
        await self._redis.aclose()

    def joined(self, agent_id: str) -> None:
        """HELLO: the agent is connected here."""
        self._sessions[agent_id] = secrets.token_hex(8)
        self._do(agent_id, lambda: self._tell_online(agent_id))

    def left(self, agent_id: str) -> None:
        """Its connection ended: its key goes, if it is still ours."""
        session = self._sessions.pop(agent_id, None)
        self._do(agent_id, lambda: self._forget(agent_id, session))

    def take(self, event: Json) -> None:
        """Stores a RESULT, publishes the event on both channels, then offers it to the subscribers."""
        agent_id = event.get("agent_id", "")
        self._do(agent_id, lambda: self._pass_on(agent_id, event))
        if event["type"] == "TOOLS":  # connected anew: it sends again what was not acknowledged
            for unacked in self._unacked.pop(agent_id, {}).values():
                self.take(unacked)

    async def result(self, req_id: str) -> bytes | None:
        """The stored RESULT. Raises RedisError or OSError."""
        stored: Any = await self._redis.get(f"bridge:result:{req_id}")
        return stored if stored is None else bytes(stored)

    async def token_version(self, sub: str, agent_id: str) -> int | None:
        """The version of the tokens that let this agent in; None where nobody said one, or Redis is away."""
        with contextlib.suppress(RedisError, OSError, ValueError):
            told = json.loads(await self._redis.get(f"bridge:agent_token_version:{sub}:{agent_id}") or b"null")
            version = told.get("version") if isinstance(told, dict) else None
            return version if isinstance(version, int) else None
        return None

    async def cached(self, connected: set[str]) -> list[Json]:
        """The agents list's entries of those that only Redis knows; none while it is away."""
        listed: list[Json] = []
        with contextlib.suppress(RedisError, OSError):
            async for key in self._redis.scan_iter(match="agent_online:*", count=500):
                agent_id = bytes(key).decode().removeprefix("agent_online:")
                told = await self._redis.get(key)
                if told is not None and agent_id not in connected:
                    at = json.loads(told)["updated_at"]
                    listed.append({"agent_id": agent_id, "status": "cached", "last_seen_at": at, "connected_at": at})
        return listed

    def _do(self, agent_id: str, step: _Step) -> None:
        if agent_id not in self._steps:
            self._steps[agent_id] = asyncio.Queue()
            self._spawn(self._in_order(self._steps[agent_id]))
        self._steps[agent_id].put_nowait(step)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_order(self, steps: asyncio.Queue[_Step]) -> None:
        while True:
            step = await steps.get()
            try:
                await step()
            except (RedisError, OSError) as fault:
                log.warning("the Gateway's Redis does not answer: %s", fault)

    async def _pass_on(self, agent_id: str, event: Json) -> None:
        encoded, req_id = encode(event), event.get("req_id")
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                if event["type"] == "RESULT" and req_id:
                    pipe.set(f"bridge:result:{req_id}", encoded, ex=RESULT_TTL_S)
                if agent_id in self._sessions:
                    pipe.set(f"agent_online:{agent_id}", self._online(agent_id), ex=ONLINE_TTL_S)
                pipe.publish(CHANNEL, encoded)
                pipe.publish(f"{CHANNEL}:agent:{agent_id}", encoded)
                await pipe.execute()
        except (RedisError, OSError):
            if event["type"] == "RESULT" and req_id:
                self._unacked.setdefault(agent_id, {})[req_id] = event
            raise
        finally:
            self._offer(event, encoded)

    async def _tell_online(self, agent_id: str) -> None:
        if agent_id in self._sessions:
            await self._redis.set(f"agent_online:{agent_id}", self._online(agent_id), ex=ONLINE_TTL_S)

    def _online(self, agent_id: str) -> bytes:
        session = self._sessions[agent_id]
        return encode({"gateway_id": self.gateway_id, "conn_session_id": session, "updated_at": int(time.time())})

    async def _forget(self, agent_id: str, session: str | None) -> None:
        told = await self._redis.get(f"agent_online:{agent_id}")
        if told is not None and json.loads(told)["conn_session_id"] == session:
            await self._redis.delete(f"agent_online:{agent_id}")

    async def _heartbeat(self) -> None:
        """The agents' PING."""
        while True:
            await asyncio.sleep(self._refresh_s)
            for agent_id in self._sessions:
                self._do(agent_id, partial(self._tell_online, agent_id))

    async def _commands(self) -> None:
        """Reads ``bridge:cmd:{gateway_id}``. Entries are acknowledged and never trimmed; a lost group stays lost."""
        key = f"bridge:cmd:{self.gateway_id}"
        grouped = False
        while True:
            try:
                grouped = grouped or await self._group(key)
                answer: Any = await self._redis.xreadgroup(
                    GROUP, self.gateway_id, {key: ">"}, count=10, block=_BLOCK_MS
                )
                entries = [entry for _, found in answer for entry in found] if isinstance(answer, list) else []
                if isinstance(answer, dict):
                    entries = [entry for found in answer.values() for entry in found[0]]
                for entry, fields in entries:
                    await self._command({name.decode(): value for name, value in fields.items()})
                    await self._redis.xack(key, GROUP, entry)
            except ResponseError as fault:
                log.error("commands are ignored until the Gateway starts again: %s", fault)  # noqa: TRY400 - no traceback
                return
            except (RedisError, OSError):
                await asyncio.sleep(_REST_S)

    async def _group(self, key: str) -> bool:
        """Made at ``$``: commands from before the first start of this id are never run."""
        with contextlib.suppress(ResponseError):  # it is there already
            await self._redis.xgroup_create(key, GROUP, id="$", mkstream=True)
        return True

    async def _command(self, fields: dict[str, bytes]) -> None:
        """Malformed ones are dropped without a notice."""
        try:
            told = decode(fields["envelope"]) if "envelope" in fields else _of_fields(fields)
            kind, agent_id, req_id = told["type"], told["agent_id"], told.get("req_id", "")
            payload = told.get("payload") or {}
            if not (told["v"] > 0 and kind and agent_id and isinstance(payload, dict)):
                return
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        tunnel = self._tunnel_of(agent_id)
        if tunnel is None or not tunnel.online:
            failed = encode(envelope("INVOKE_FAILED", agent_id, req_id, {"error": "agent_offline"}))
            await self._redis.publish(CHANNEL, failed)
            await self._redis.publish(f"{CHANNEL}:agent:{agent_id}", failed)
        elif kind == "CANCEL":
            tunnel.cancel(req_id)
        elif kind == "INVOKE" and _can_be_read(payload):
            tunnel.invoke(envelope(kind, agent_id, req_id, payload))
        elif kind == "INVOKE":
            self.take(envelope("INVOKE_ACK", agent_id, req_id, {"accepted": False, "reason": "invalid_payload"}))


def _of_fields(fields: dict[str, bytes]) -> Json:
    told: Json = {name: fields[name].decode() for name in ("type", "agent_id")} | {"v": 1}
    if "req_id" in fields:
        told["req_id"] = fields["req_id"].decode()
    if "payload" in fields:
        told["payload"] = decode(fields["payload"])
    return told


def _can_be_read(payload: Json) -> bool:
    """Whether an agent can parse the payload of this INVOKE."""
    tool = payload.get("tool")
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        return False
    return isinstance(tool.get("args") or {}, dict) and isinstance(payload.get("timeout_ms") or 0, int)
