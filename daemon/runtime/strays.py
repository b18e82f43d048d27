"""Strays: letters handed over in memory whose run left this node before they were folded.

``ingest`` hands a letter straight to the run where the same node holds it, which saves four exchanges with Redis a step
and a third of a millisecond before the next call. Such a letter is nowhere else, so a node that lets a run go, or loses
it, puts what is left into the run's inbox, where the next holder finds it like any other. (A node that is killed takes
what it had heard and not committed with it: a standby's memory has it, or the result store.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from daemon.errors import FabricUnavailable
from daemon.machine.commands import IN_MEMORY, Entry, RunId
from daemon.runtime.ports import Inbox
from daemon.telemetry import log

BATCH = 500
RETRY_S = 0.25


def in_memory(entries: Iterable[Entry]) -> list[Entry]:
    """Those of the letters that no inbox has."""
    return [entry for entry in entries if entry.key == IN_MEMORY]


class Strays:
    """``add`` from anywhere; ``run`` brings them to their inboxes until cancelled, ``returned`` waits for that."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[RunId, Entry]] = deque()
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def add(self, run_id: RunId, entries: Iterable[Entry]) -> None:
        """Of these letters, those that no inbox has."""
        self._waiting.extend((run_id, entry) for entry in in_memory(entries))
        if self._waiting:
            self._some.set()
            self._none.clear()

    async def run(self, inbox: Inbox) -> None:
        """Bring every stray to its inbox, until cancelled."""
        while True:
            await self._some.wait()
            batch = [self._waiting[index] for index in range(min(BATCH, len(self._waiting)))]
            try:
                await inbox.give_back(batch)
            except FabricUnavailable as fault:
                log.warning("stray letters wait for Redis", letters=len(self._waiting), fault=str(fault))
                await asyncio.sleep(RETRY_S)
                continue
            for _ in batch:
                self._waiting.popleft()
            if not self._waiting:
                self._some.clear()
                self._none.set()

    async def returned(self) -> None:
        """Until none is left."""
        await self._none.wait()
