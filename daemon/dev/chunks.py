"""The queue in which an agent's output waits for the tunnel, so that a RESULT overtakes it.

Only ``tunnel`` uses it. It knows no call beyond its req_id.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from daemon.dev.envelope import Json, pieces

_QUEUED_CHUNKS = 512
_QUEUED_BYTES = 4 * 1024 * 1024


class ChunkQueue:
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
