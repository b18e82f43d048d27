"""The agent's end of the tunnel: calls in flight at one agent, and the events they cause.

``DevGateway`` owns one per agent. What the real agent does with INVOKE and CANCEL happens here, in the order it was
seen to: acknowledge before looking the tool up, print through a queue that a RESULT overtakes, never ask whether a
req_id was used before. It never speaks HTTP and keeps no result.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from daemon.dev.agent import ALIASES, Emit, LocalAgent, ToolFailure
from daemon.dev.envelope import Json, envelope, pieces, through_float64

log = logging.getLogger(__name__)

_QUEUED_CHUNKS = 512
_QUEUED_BYTES = 4 * 1024 * 1024

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
    """One connected agent: ``invoke`` and ``cancel`` are what arrives, ``publish`` takes what it answers."""

    def __init__(self, agent: LocalAgent, publish: Callable[[Json], None], ledger: list[Execution]) -> None:
        self.agent = agent
        self.connected_at = self.last_seen_at = int(time.time())
        self.tools: list[Json] | None = None  # unknown until the agent has started
        self._publish = publish
        self._ledger = ledger
        self._calls: set[_Call] = set()
        self._by_req_id: dict[str, _Call] = {}
        self._chunks = _ChunkQueue(self._send)
        self._pump: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts the agent and announces its tools."""
        self._pump = asyncio.create_task(self._chunks.run(), name=f"chunks of {self.agent.agent_id}")
        await self.agent.start(self._log)
        self.tools = self.agent.tools()
        self._send("TOOLS", None, {"tools": self.tools})

    async def close(self) -> None:
        """Cancels every call without a RESULT, as a cut connection does, and stops the agent."""
        tasks = [call.task for call in self._calls if call.task is not None]
        if self._pump is not None:
            tasks.append(self._pump)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.agent.stop()

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
        call.cancel_asked = True
        if call.begun:  # a task cancelled before its first step would never run at all, and send no RESULT
            call.task.cancel()
        self._send("CANCEL_ACK", req_id, {"will_cancel": True})

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
        self._send("RESULT", call.req_id, result)

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

    def _emit_of(self, call: _Call) -> Emit:
        return lambda channel, text: self._chunks.put(call.req_id, channel, text)

    def _log(self, channel: str, text: str) -> None:
        """Text of no call in particular belongs to the one call that runs, if exactly one runs."""
        only = next(iter(self._calls)).req_id if len(self._calls) == 1 else None
        self._chunks.put(only, channel, text)

    def _send(self, kind: str, req_id: str | None, payload: Json) -> None:
        self.last_seen_at = int(time.time())
        self._publish(envelope(kind, self.agent.agent_id, req_id, payload))


class _ChunkQueue:
    """CHUNKs wait in a bounded queue of their own, so a RESULT overtakes them; what does not fit is dropped.

    The loss is reported on the next CHUNK that fits, whichever call it belongs to: a delta, not a total.
    """

    def __init__(self, send: Callable[[str, str | None, Json], None]) -> None:
        self._send = send
        self._waiting: deque[tuple[str | None, Json, int]] = deque()
        self._bytes = 0
        self._dropped_bytes = 0
        self._dropped_lines = 0
        self._filled = asyncio.Event()

    def put(self, req_id: str | None, channel: str, text: str) -> None:
        """Queues text as CHUNKs; never waits."""
        for piece in pieces(text):
            size = len(piece.encode())
            if len(self._waiting) >= _QUEUED_CHUNKS or self._bytes + size > _QUEUED_BYTES:
                self._dropped_bytes += size
                self._dropped_lines += piece.count("\n")
                continue
            payload: dict[str, Any] = {"channel": channel, "data": piece}
            if self._dropped_bytes:
                payload |= {"dropped_bytes": self._dropped_bytes, "dropped_lines": self._dropped_lines}
                self._dropped_bytes = self._dropped_lines = 0
            self._bytes += size
            self._waiting.append((req_id, payload, size))
            self._filled.set()

    async def run(self) -> None:
        """Sends what is queued, giving way after each so that readers keep up."""
        while True:
            await self._filled.wait()
            while self._waiting:
                req_id, payload, size = self._waiting.popleft()
                self._bytes -= size
                self._send("CHUNK", req_id, payload)
                await asyncio.sleep(0)
            self._filled.clear()


def _failure(message: str, code: str) -> Json:
    return {"ok": False, "error": {"message": message, "code": code}}
