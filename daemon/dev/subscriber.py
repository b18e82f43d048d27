"""One SSE subscriber of the dev Gateway: its filters, its bounded buffer, and the writing of its frames.

``DevGateway`` offers it every event. Its overflow is the contract's, odd as it is: a CHUNK that does not fit is
dropped, anything else pushes out the oldest message of whatever kind. It never tells the reader what was lost.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aiohttp import web

from daemon.dev.envelope import Json

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
_READY = b"event: ready\ndata: {}\n\n"
_PING = b": ping\n\n"


class Subscriber:
    """``offer`` is called for every event and never waits; ``serve`` writes until cancelled or the reader goes."""

    def __init__(self, *, agent_id: str, req_id: str, buffer: int, heartbeat_s: float) -> None:
        self._agent_id = agent_id
        self._req_id = req_id
        self._limit = buffer
        self._heartbeat_s = heartbeat_s
        self._waiting: deque[bytes] = deque()
        self._filled = asyncio.Event()

    def offer(self, event: Json, encoded: bytes) -> None:
        """Queues an event that passes the filters (both must match exactly, where given)."""
        if self._agent_id and event.get("agent_id") != self._agent_id:
            return
        if self._req_id and event.get("req_id") != self._req_id:
            return
        if len(self._waiting) >= self._limit:
            if event["type"] == "CHUNK":
                return
            self._waiting.popleft()
        self._waiting.append(b"event: bridge\ndata: " + encoded + b"\n\n")
        self._filled.set()

    async def serve(self, response: web.StreamResponse) -> None:
        """Writes ``ready`` (the subscription must already be active), then events and heartbeats."""
        clock = asyncio.get_running_loop().time
        next_ping = clock() + self._heartbeat_s if self._heartbeat_s > 0 else None
        await response.write(_READY)
        while True:
            while self._waiting:
                await response.write(self._waiting.popleft())
                if next_ping is not None and clock() >= next_ping:
                    break
            if next_ping is not None and clock() >= next_ping:
                await response.write(_PING)
                next_ping = max(next_ping + self._heartbeat_s, clock())
            if not self._waiting:
                self._filled.clear()
                try:
                    async with asyncio.timeout_at(next_ping):
                        await self._filled.wait()
                except TimeoutError:
                    continue
