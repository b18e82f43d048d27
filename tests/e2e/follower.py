"""A browser's EventSource, as far as it matters here: it comes back by itself with the last id it has seen."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.api.harness import POLL_S, Stack, Watch


class Follower:
    """Follows one run whatever becomes of the node, until the server says (204) that there is nothing more."""

    def __init__(self, stack: Stack, run_id: str) -> None:
        self._stack = stack
        self._url = f"{stack.base}/v1/workflow-runs/{run_id}/events"
        self.events: list[dict[str, Any]] = []
        self.connections = 0
        self._task = asyncio.create_task(self._follow(), name="follower")

    @property
    def seqs(self) -> list[int]:
        return [event["seq"] for event in self.events]

    @property
    def types(self) -> list[str]:
        return [event["event_type"] for event in self.events]

    async def end(self, within_s: float = 60) -> list[dict[str, Any]]:
        """Everything that it saw, once there is nothing more to see."""
        async with asyncio.timeout(within_s):
            await self._task
        return self.events

    def assert_saw(self, log: list[dict[str, Any]]) -> None:
        """Every event of the log once, in order; only log lines that came after the end may be missing."""
        seen = len(self.events)
        assert self.events == log[:seen]
        assert {event["event_type"] for event in log[seen:]} <= {"tool.log"}

    async def _follow(self) -> None:
        while True:
            headers = self._stack.headers(**{"Last-Event-ID": str(self.seqs[-1])} if self.events else {})
            try:
                timeout = aiohttp.ClientTimeout(total=None)
                async with self._stack.http.get(self._url, headers=headers, timeout=timeout) as response:
                    if response.status == 204:
                        return
                    assert response.status == 200
                    self.connections += 1
                    await self._read(Watch(response))
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(POLL_S)

    async def _read(self, watch: Watch) -> None:
        try:
            while True:
                frame = await watch.frame(within_s=60)
                if frame.id is not None:
                    self.events.append(frame.data)
        except EOFError:
            return
