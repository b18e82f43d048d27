"""Between handlers and actors: a bell that says that commands were written, and one look at what became of them.

Used by ``runs``, ``decisions`` and ``bulk``. Handlers never ring or look by themselves: whatever came meanwhile goes
into one call to Redis, and one statement asks about every command that any handler of this node waits for. (A
subscription to each run's channel costs a handler more than that, and it has to read the row all the same.) Neither is
the truth: a bell that was not heard is the sweep's, and a verdict that was not seen in time is a 202.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from uuid import UUID

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.fabric.inbox import Inbox
from daemon.machine.commands import RunId
from daemon.store.commands import CommandRow, Commands

GATHER_S = 0.005
"""After the bell, before it rings again: what comes meanwhile is told in one call; what comes alone rings at once."""
LOOK_S = 0.01
"""From a command to the first look at its verdict: about what an idle node takes to decide."""
LOOK_MOST_S = 0.25
"""Between looks at commands that take their time; the pause grows by a quarter, and a new command resets it."""


class Bell:
    """Rings runs whose commands are on disk. ``run`` until cancelled."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._wanted: dict[RunId, None] = {}
        self._rung = asyncio.Event()

    def ring(self, *run_ids: RunId) -> None:
        """Tell whoever holds each run, or anybody, to look at its command rows; soon, and nobody waits for it."""
        self._wanted |= dict.fromkeys(run_ids)
        self._rung.set()

    async def run(self) -> None:
        """Ring; without Redis the commands stay on disk, and the sweep finds them."""
        while True:
            await self._rung.wait()
            self._rung.clear()
            wanted, self._wanted = self._wanted, {}
            with contextlib.suppress(FabricUnavailable):
                await self._inbox.ring(*wanted)
            await asyncio.sleep(GATHER_S)


class Verdicts:
    """What became of commands. ``run`` until cancelled."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._waiting: dict[UUID, list[asyncio.Future[CommandRow]]] = {}
        """Several may wait for one command: whoever repeats a request waits for what the first one said."""
        self._asked = asyncio.Event()

    async def of(self, command_ids: Sequence[UUID], *, within_s: float) -> list[CommandRow]:
        """Those of the commands that are decided in time. Raises StoreUnavailable."""
        loop = asyncio.get_running_loop()
        futures = {one: loop.create_future() for one in command_ids}
        for one, future in futures.items():
            self._waiting.setdefault(one, []).append(future)
        self._asked.set()
        telemetry.watchers.inc()
        try:
            await asyncio.wait(futures.values(), timeout=within_s)
        finally:
            telemetry.watchers.dec()
            for one, future in futures.items():
                self._leave(one, future)
        found = [future.result() for future in futures.values() if future.done()]
        missing = [one for one, future in futures.items() if not future.done()]
        return found + await self._commands.decided(missing) if missing else found

    async def run(self) -> None:
        """Look while somebody waits."""
        pause_s = LOOK_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s if self._waiting else None):
                    await self._asked.wait()
            if self._asked.is_set():
                self._asked.clear()
                pause_s = LOOK_S
                await asyncio.sleep(LOOK_S)
            await self._look()
            pause_s = min(1.25 * pause_s, LOOK_MOST_S)

    async def _look(self) -> None:
        """One statement for all handlers; while Postgres is away they go on waiting."""
        with contextlib.suppress(StoreUnavailable):
            for row in await self._commands.decided(list(self._waiting)) if self._waiting else ():
                for future in self._waiting.pop(row.id, ()):
                    if not future.done():
                        future.set_result(row)

    def _leave(self, command_id: UUID, future: asyncio.Future[CommandRow]) -> None:
        """Its handler waits no more; others may."""
        others = self._waiting.get(command_id, [])
        if future in others:
            others.remove(future)
            if not others:
                del self._waiting[command_id]
