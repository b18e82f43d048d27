"""The feed: one ear for all watchers of this node. Messages of the bus go to bounded queues, one a watcher.

Used by ``stream`` (SSE). A watcher that reads too slowly is cut off, never
waited for. Nothing here is the truth: a watcher that sees a gap reads the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Set
from contextlib import asynccontextmanager
from uuid import UUID

from daemon import telemetry
from daemon.fabric.bus import Bus
from daemon.machine.record import Told
from daemon.store.log import EventLog
from daemon.store.sight import Asked


class Watcher:
    """One watcher's queue. ``None`` in it means: subscribed just now, or something may be missing: look at the log."""

    def __init__(self, bound: int) -> None:
        self._queue: asyncio.Queue[Told | None] = asyncio.Queue(bound)
        self.token: UUID | None = None
        """The service token that it watches by."""
        self.key: str | None = None
        """The key that proved the JWT that it watches by."""
        self.asked: Asked | None = None
        """The right that it watches by, where that may end; ``found_in`` is kept for ``watches``."""
        self.found_in = 0
        self.overrun = False
        self.closed = False
        self.seen = 0
        """The last seq that this watcher has passed on."""

    def tell(self, told: Told | None) -> None:
        """Queue a message, or note that the watcher is too slow."""
        try:
            self._queue.put_nowait(told)
        except asyncio.QueueFull:
            self.overrun = True

    def close(self) -> None:
        """Nothing more is passed on; its client comes back, and is answered anew."""
        self.closed = True
        self.tell(None)

    async def next(self, timeout_s: float) -> Told | None:
        """The next message. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            return await self._queue.get()


class Feed:
    """All watchers, by run."""

    def __init__(self, bus: Bus, *, bound: int) -> None:
        self._bus = bus
        self._bound = bound
        self._watchers: dict[UUID, set[Watcher]] = {}

    @property
    def runs(self) -> list[UUID]:
        """The runs that somebody watches."""
        return list(self._watchers)

    @property
    def clients(self) -> int:
        """Watchers at this moment."""
        return sum(len(watchers) for watchers in self._watchers.values())

    @asynccontextmanager
    async def watch(self, run_id: UUID) -> AsyncIterator[Watcher]:
        """Hear of a run while inside."""
        watcher = Watcher(self._bound)
        telemetry.watchers.inc()
        others = self._watchers.setdefault(run_id, set())
        others.add(watcher)
        try:
            if len(others) == 1:
                await self._bus.watch((run_id,))
            else:
                watcher.tell(None)
            yield watcher
        finally:
            telemetry.watchers.dec()
            others.discard(watcher)
            if not others and self._watchers.get(run_id) is others:
                del self._watchers[run_id]
                await self._bus.unwatch(run_id)

    def heard(self, run_id: UUID, told: Told | None) -> None:
        """A message of the bus."""
        for watcher in self._watchers.get(run_id, ()):
            watcher.tell(told)

    async def compare(self, log: EventLog) -> None:
        """One statement for all watched runs: whoever is behind its log looks there. Repairs lost messages.

        Whoever had seen more than the log holds was told what Postgres has lost: it is cut off, to begin anew.
        """
        if not self._watchers:
            return
        before = {watcher: watcher.seen for watchers in self._watchers.values() for watcher in watchers}
        for run_id, last_seq in (await log.last_seqs(self.runs)).items():
            for watcher in self._watchers.get(run_id, ()):
                if before.get(watcher, 0) > last_seq:
                    watcher.overrun = True
                if watcher.seen < last_seq or watcher.overrun:
                    watcher.tell(None)

    @property
    def tokens(self) -> set[UUID]:
        """The service tokens that somebody watches by."""
        return {watcher.token for watcher in self._all() if watcher.token is not None}

    @property
    def keys(self) -> set[str]:
        """The keys of the JWTs that somebody watches by."""
        return {watcher.key for watcher in self._all() if watcher.key is not None}

    def asked(self) -> list[Watcher]:
        """Those who watch by a right that may end."""
        return [watcher for watcher in self._all() if watcher.asked is not None]

    def expel(
        self, *, tokens: Set[UUID] = frozenset(), keys: Set[str] = frozenset(), asked: Set[Asked] = frozenset()
    ) -> None:
        """These service tokens, keys of JWTs and rights open nothing any more: streams by them end."""
        for watcher in self._all() if tokens or keys or asked else ():
            if watcher.token in tokens or watcher.key in keys or watcher.asked in asked:
                watcher.close()

    def _all(self) -> Iterator[Watcher]:
        return (watcher for watchers in self._watchers.values() for watcher in watchers)

    def close(self) -> None:
        """The node leaves: every stream ends and its client comes back to another node."""
        for watcher in self._all():
            watcher.close()
