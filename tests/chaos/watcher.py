"""A browser that watches one run whatever becomes of the nodes: it comes back, anywhere, with the last id it saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp

from tests.api.harness import Watch
from tests.patience import let_pass

SILENCE_S = 5.0
"""Longer than a few heartbeats: the node behind the connection hangs."""
BACK_S = 0.3


class Watcher:
    """``run`` until the server says (204) that there is nothing more; ``catch_up`` reads what a late visitor reads."""

    def __init__(
        self, http: aiohttp.ClientSession, doors: Callable[[], list[str]], headers: dict[str, str], run_id: str
    ) -> None:
        self.run_id = run_id
        self.events: list[dict[str, Any]] = []
        self.faults: list[str] = []
        self.connections = 0
        self.news = asyncio.Event()
        """Set when something was seen that a person acts on; log lines are not."""
        self._http = http
        self._doors = doors
        self._headers = headers

    async def run(self) -> None:
        while not await self._visit():
            await let_pass(BACK_S)
        self.news.set()

    async def catch_up(self, last_seq: int) -> None:
        """Come back until everything up to ``last_seq`` was seen."""
        while len(self.events) < last_seq:
            await self._visit(until="replay.done")

    async def _visit(self, until: str | None = None) -> bool:
        """One connection to some node, to its end; True when there is nothing more to see."""
        for base in self._doors():
            headers = self._headers | ({"Last-Event-ID": str(self.events[-1]["seq"])} if self.events else {})
            url = f"{base}/v1/workflow-runs/{self.run_id}/events"
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=SILENCE_S)
            try:
                async with self._http.get(url, headers=headers, timeout=timeout) as response:
                    if response.status == 204:
                        return True
                    if response.status == 200:
                        self.connections += 1
                        await self._read(Watch(response), until)
                        return False
            except (aiohttp.ClientError, OSError, TimeoutError, EOFError):
                continue
        return False

    async def _read(self, watch: Watch, until: str | None) -> None:
        while True:
            frame = await watch.frame(within_s=SILENCE_S)
            if frame.id is not None:
                self._see(int(frame.id), frame.data)
            elif until is not None and frame.event == until:
                return

    def _see(self, seq: int, event: dict[str, Any]) -> None:
        """Each seq once, in order, without a gap: anything else is a fault, and told."""
        after = self.events[-1]["seq"] if self.events else 0
        if seq != after + 1 or event["seq"] != seq or event["run_id"] != self.run_id:
            self.faults.append(f"run {self.run_id}: a watcher saw {json.dumps(event)} after seq {after}")
        self.events.append(event)
        if event["event_type"] != "tool.log":
            self.news.set()
