"""The agent's end of the tunnel: calls in flight at one agent, and the events they cause.

``DevGateway`` owns one per agent. What the real agent does with INVOKE and CANCEL happens here, in the order it was
seen to: acknowledge before looking the tool up, print through a queue that a RESULT overtakes, never ask whether a
req_id was used before. So do its odd moments (``weather``): its connection is cut and made again, it freezes, it loses
a RESULT. It never speaks HTTP and keeps no result but those that it must send again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple

from daemon.dev.agent import ALIASES, Emit, LocalAgent, ToolFailure
from daemon.dev.chunks import ChunkQueue
from daemon.dev.envelope import Json, envelope, through_float64
from daemon.dev.handshake import OPEN, Door, TokenRefused
from daemon.dev.weather import Weather

log = logging.getLogger(__name__)

RECONNECT_S = 0.2
"""From a cut connection to the next one. A real agent takes up to a minute."""

_CANCELED: Json = {"ok": False, "canceled": True, "error": {"message": "canceled", "code": "canceled"}}
_TIMEOUT: Json = {"ok": False, "error": {"message": "timeout", "code": "timeout"}}


class Execution(NamedTuple):
    """One line of the ledger: a call that really started at the tool side."""

    req_id: str
    agent_id: str
    tool_name: str
    arguments: Json | None


@dataclass(slots=True, eq=False)
class _Call:
    req_id: str
    begun: bool = False
    cancel_asked: bool = False
    task: asyncio.Task[None] | None = None


class Tunnel:
    """One connected agent: ``deliver`` takes what arrives, ``publish`` what it answers."""

    def __init__(
        self,
        agent: LocalAgent,
        publish: Callable[[Json], None],
        ledger: list[Execution],
        weather: Weather,
        door: Door = OPEN,
    ) -> None:
        self.agent = agent
        self._door = door
        self.connected_at = self.last_seen_at = int(time.time())
        self.tools: list[Json] | None = None  # unknown until the agent has started
        self.online = True
        self._publish = publish
        self._ledger = ledger
        self._weather = weather
        self._calls: set[_Call] = set()
        self._by_req_id: dict[str, _Call] = {}
        self._chunks = ChunkQueue(self._send)
        self._pump: asyncio.Task[None] | None = None
        self._incidents: set[asyncio.Task[None]] = set()
        self._socket = asyncio.Lock()
        self._unread: deque[Json] = deque()  # what arrived while the agent was frozen
        self._unacked: list[Json] = []  # RESULTs to be sent (again) after a reconnect
        self._held_chunks: list[Json] = []

    async def open(self) -> None:
        """Starts the agent and announces its tools."""
        self._pump = asyncio.create_task(self._chunks.run(), name=f"chunks of {self.agent.agent_id}")
        await self.agent.start(self._log)
        self.tools = self.agent.tools()
        self._send("TOOLS", None, {"tools": self.tools})

    async def close(self) -> None:
        """Cancels every call without a RESULT, as a cut connection does, and stops the agent."""
        self.online = False
        tasks = [call.task for call in self._calls if call.task is not None]
        tasks += self._incidents
        if self._pump is not None:
            tasks.append(self._pump)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.agent.stop()

    async def deliver(self, letter: Json) -> None:
        """INVOKE or CANCEL is written to the connection; returns when that is done, which proves no more."""
        blocked = self._holds("hanging_invoke")
        try:
            async with self._socket:
                await self._weather.lifted("hanging_invoke", self.agent.agent_id)
                self._arrive(letter)
                if blocked:
                    await asyncio.sleep(0)  # what it begins, it begins before it reads on
        except asyncio.CancelledError:  # the HTTP client gave up
            if blocked:
                self._soon(self.reconnect())
            raise
        call = self._by_req_id.get(letter["req_id"])
        if call is not None and call.task is not None and self._holds("ack_before_202"):
            await asyncio.wait({call.task})

    def invoke(self, invoke: Json) -> None:
        """INVOKE arrived: from here on everything is told by events."""
        call = _Call(invoke["req_id"])
        self._calls.add(call)
        self._by_req_id[call.req_id] = call  # of two calls with one req_id, the later can be cancelled
        call.task = asyncio.create_task(self._run(call, invoke["payload"]), name=f"call {call.req_id}")

    def cancel(self, req_id: str) -> None:
        """CANCEL arrived; finished and unknown calls are answered alike."""
        call = self._by_req_id.get(req_id)
        if call is None or call.task is None:
            self._send("CANCEL_ACK", req_id, {"will_cancel": False, "reason": "unknown_req_id"})
            return
        self._stop(call)
        self._send("CANCEL_ACK", req_id, {"will_cancel": True})

    async def reconnect(self) -> None:
        """The connection ends, and the agent makes a new one."""
        if self.online:
            await self.cut()
            await self.come_back()

    async def cut(self, *, announced: bool = True) -> None:
        """The connection ends: every call is cancelled at the agent, its RESULT kept. A leaving Gateway is silent."""
        self.online = False
        self._unread.clear()
        if announced:
            self._publish(envelope("DISCONNECT", self.agent.agent_id, None, None))
        calls = list(self._calls)
        for call in calls:
            self._stop(call)
        await asyncio.gather(*(call.task for call in calls if call.task is not None), return_exceptions=True)

    async def come_back(self) -> None:
        """After a while the agent connects again, announces its tools, and sends what nobody has acknowledged.

        If it is not let in it keeps trying, and only its log says so.
        """
        await asyncio.sleep(RECONNECT_S)
        try:
            await self._door.admit(self.agent)
        except TokenRefused as fault:
            log.warning("%s is not let in: %s", self.agent.agent_id, fault)
            self._soon(self.come_back())
            return
        self.online = True
        self.connected_at = int(time.time())
        self._send("TOOLS", None, {"tools": self.tools})
        unacked, self._unacked = self._unacked, []
        for result in unacked:
            self._publish(result)

    def _stop(self, call: _Call) -> None:
        call.cancel_asked = True
        if call.begun and call.task is not None:  # cancelled before its first step, a task would send no RESULT
            call.task.cancel()

    def _arrive(self, letter: Json) -> None:
        if letter["type"] == "INVOKE" and self._holds("oversize_invoke"):
            self._soon(self.reconnect())
        elif self._unread:
            self._unread.append(letter)
        elif self._holds("frozen_agent"):
            self._unread.append(letter)
            self._soon(self._thaw())
        elif self.online:
            self._take(letter)

    def _take(self, letter: Json) -> None:
        if letter["type"] == "INVOKE":
            self.invoke(letter)
        else:
            self.cancel(letter["req_id"])

    async def _thaw(self) -> None:
        """A frozen agent reads what has queued up, in order; what it begins, it begins before it reads on."""
        await self._weather.lifted("frozen_agent", self.agent.agent_id)
        while self._unread:
            self._take(self._unread.popleft())
            await asyncio.sleep(0)

    async def _die(self) -> None:
        """Killed: nothing of its calls is ever heard again. Started anew when the weather changes."""
        await self.cut()
        self._unacked.clear()
        await self._weather.lifted("agent_killed", self.agent.agent_id)
        await self.come_back()

    async def _flap(self) -> None:
        """An oversize RESULT ends each connection that it is sent over."""
        while self.online and self._holds("oversize_result"):
            await self.reconnect()

    def _holds(self, condition: str) -> bool:
        return self._weather.holds(condition, self.agent.agent_id)

    def _soon(self, incident: Coroutine[Any, Any, None]) -> None:
        """What cannot be awaited here, because it may end the very call that causes it."""
        task = asyncio.create_task(incident, name=f"incident of {self.agent.agent_id}")
        self._incidents.add(task)
        task.add_done_callback(self._incidents.discard)

    async def _run(self, call: _Call, payload: Json) -> None:
        call.begun = True
        try:
            self._send("INVOKE_ACK", call.req_id, {"accepted": True})
            result = _CANCELED if call.cancel_asked else await self._verdict(call, payload)
        except asyncio.CancelledError:
            if not call.cancel_asked:
                raise  # the tunnel closes: a cut connection sends no RESULT
            result = _CANCELED
        finally:
            self._calls.discard(call)
            self._by_req_id.pop(call.req_id, None)
        self._answer(envelope("RESULT", self.agent.agent_id, call.req_id, result))

    async def _verdict(self, call: _Call, payload: Json) -> Json:
        """Runs the tool; every way it can end is a RESULT payload."""
        asked = str(payload["tool"]["name"]).strip()
        arguments: Json | None = payload["tool"].get("args")
        timeout_ms = payload.get("timeout_ms") or 0
        if not asked:
            return _failure("tool name is empty", "tool_not_found")
        self._chunks.put(call.req_id, "stderr", f"running tool: {asked}\n")
        name = ALIASES.get(asked, asked)
        if name not in {tool["name"] for tool in self.tools or ()}:
            return _failure(f"tool not found: {asked}", "tool_call_failed")
        self._ledger.append(Execution(call.req_id, self.agent.agent_id, asked, arguments))
        self._begun()
        clock = asyncio.timeout(timeout_ms / 1000 if timeout_ms > 0 else None)
        try:
            async with clock:
                result = await self.agent.call(name, arguments, self._emit_of(call))
            return {"ok": True, "result_json": through_float64(result)}
        except ToolFailure as fault:
            return _failure(str(fault), fault.code)
        except TimeoutError as fault:
            return _TIMEOUT if clock.expired() else _failure(str(fault) or "timeout", "tool_call_failed")
        except Exception as fault:  # a tool may raise anything; the contract has one code for it
            log.debug("tool %s of %s raised", asked, self.agent.agent_id, exc_info=True)
            return _failure(str(fault) or type(fault).__name__, "tool_call_failed")

    def _begun(self) -> None:
        """What happens to an agent whose tool has just begun."""
        if self._holds("false_disconnect"):
            self._publish(envelope("DISCONNECT", self.agent.agent_id, None, None))
        if self._holds("tunnel_cut"):
            self._soon(self.reconnect())
        if self._holds("agent_killed"):
            self._soon(self._die())

    def _answer(self, result: Json) -> None:
        """The RESULT of a call, or what the weather makes of it."""
        payload = result["payload"]
        canceled, timeout = payload.get("canceled") is True, payload is _TIMEOUT
        self.last_seen_at = int(time.time())
        if (
            not self.online
            or (canceled and self._holds("lost_result_after_cancel"))
            or (timeout and self._holds("lost_result_after_timeout"))
        ):
            self._unacked.append(result)
        elif self._holds("late_result"):
            self._soon(self._answer_late(result))
        elif self._holds("oversize_result"):
            self._soon(self._flap())
        elif self._holds("resent_result"):
            self._unacked.append(result)
            self._soon(self.reconnect())
        else:
            self._publish(result)
            if self._holds("duplicate_result"):
                self._publish(result)
            if canceled and self._holds("collateral_canceled"):
                self._unacked.append(result)  # its RESULT_ACK is lost with the connection
                self._soon(self.reconnect())
        self._let_go_of_chunks(result["req_id"])

    async def _answer_late(self, result: Json) -> None:
        await self._weather.lifted("late_result", self.agent.agent_id)
        self._answer(result)

    def _let_go_of_chunks(self, req_id: str) -> None:
        mine = [chunk for chunk in self._held_chunks if chunk.get("req_id") == req_id]
        self._held_chunks = [chunk for chunk in self._held_chunks if chunk.get("req_id") != req_id]
        for chunk in mine:
            self._publish(chunk)

    def _emit_of(self, call: _Call) -> Emit:
        return lambda channel, text: self._chunks.put(call.req_id, channel, text)

    def _log(self, channel: str, text: str) -> None:
        """Text of no call in particular belongs to the one call that runs, if exactly one runs."""
        only = next(iter(self._calls)).req_id if len(self._calls) == 1 else None
        self._chunks.put(only, channel, text)

    def _send(self, kind: str, req_id: str | None, payload: Json) -> None:
        self.last_seen_at = int(time.time())
        event = envelope(kind, self.agent.agent_id, req_id, payload)
        if kind == "CHUNK" and req_id in self._by_req_id and self._holds("chunk_after_result"):
            self._held_chunks.append(event)
        elif self.online:
            self._publish(event)


def _failure(message: str, code: str) -> Json:
    return {"ok": False, "error": {"message": message, "code": code}}
