"""The sweep: repairs what signals missed. Every node can, one does; it marks runs ready and touches nothing else.

Due: passive, and its ``wake_at`` has come; those of them that only look are not marked, but given to ``looks``.
Commanded: a command without verdict for longer than ``stale_after_s``.
Orphaned: an owner in Postgres whose node no longer shines; and, looked at every few periods because it costs a look
at each run in memory anywhere, an owner without a lease. A live neighbour's run is never marked for being quiet.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.fabric.generation import Generation
from daemon.fabric.inbox import Inbox, Post
from daemon.fabric.lease import Leases
from daemon.fabric.ready import Ready
from daemon.fabric.role import Role
from daemon.machine.spec import NAME_CHARS
from daemon.runtime.looks import Looks
from daemon.store.claims import Claims
from daemon.telemetry import log

LIMIT = 1000
"""Runs looked at in one statement."""
ORPHANS = 10_000
"""Orphans of dead nodes offered at once; the next ones follow when the offers are taken."""
MONTHS_AHEAD = 3
PARTITIONS_EVERY_S = 6 * 3600.0
NOBODY = UUID(int=0)
RETURNED = 10_000
"""Most agents kept that have returned since the last period; of others the runs look at their own time."""
LEASES_EVERY = 5
"""Periods between two looks at every single lease; a dead node is found in each period."""


def node_beacon(node: str) -> str:
    """The name of the beacon by which a node says that it lives."""
    return f"node-{node}"


class Sweep:
    """The sweep of this node; ``run`` until cancelled, working only while it has the role."""

    def __init__(
        self,
        *,
        claims: Claims,
        looks: Looks,
        leases: Leases,
        inbox: Inbox,
        ready: Ready,
        role: Role,
        generation: Generation,
        shining: Callable[[Sequence[str]], Awaitable[set[str]]],
        unsure: Callable[[], None],
        period_s: float,
        stale_after_s: float,
    ) -> None:
        self._claims = claims
        self._looks = looks
        self._leases = leases
        self._inbox = inbox
        self._ready = ready
        self._role = role
        self._generation = generation
        self._shining = shining
        self._unsure = unsure
        self._period_s = period_s
        self._stale_after_s = stale_after_s
        self._partitions_at = 0.0
        self._periods = 0
        self._missed = self._moved = False
        self._returned: set[str] = set()

    async def run(self) -> None:
        """Look every period, with a jitter of a tenth so that nodes do not beat together."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._wake()
                await self._notice_a_move()
                if await self._role.hold():
                    await self.once()
                    if loop.time() >= self._partitions_at:
                        await self._claims.ensure_partitions(MONTHS_AHEAD)
                        self._partitions_at = loop.time() + PARTITIONS_EVERY_S
            except (FabricUnavailable, StoreUnavailable) as fault:
                log.warning("the sweep waits", fault=str(fault))
            await asyncio.sleep(self._period_s * random.uniform(0.9, 1.1))  # noqa: S311 - a jitter, not a secret

    async def _wake(self) -> None:
        """Wake passive runs that may have missed something; what is said meanwhile holds for the next time."""
        missed, returned = self._missed, frozenset(self._returned)
        if not (missed or returned):
            return
        self._missed, self._returned = False, set()
        try:
            await self._claims.wake_waiting(None if missed else returned)
        except StoreUnavailable:
            self._missed, self._returned = self._missed or missed, self._returned | returned
            raise

    async def _notice_a_move(self) -> None:
        """Another Redis server may have all the leases and not the last letters, so no renewal would tell.

        Asked about once more in the next period: somebody may have gone on writing to the old one for a moment.
        """
        before, self._moved = self._moved, await self._generation.moved()
        if before or self._moved:
            self._unsure()

    def missed(self) -> None:
        """The Gateway was not heard for a while, so RESULTs of passive runs may have gone by: each shall ask."""
        self._missed = True

    def returned(self, agent_id: str) -> None:
        """An agent connected anew: the passive runs that wait for it shall ask what became of their calls.

        Anybody may say so, of any name: one that Postgres refuses (NUL) would end this node, a longer one is in no
        workflow.
        """
        if 0 < len(agent_id) <= NAME_CHARS and "\x00" not in agent_id and len(self._returned) < RETURNED:
            self._returned.add(agent_id)

    async def leave(self) -> None:
        """Give the role to another node at once; part of a drain."""
        try:
            await self._role.leave()
        except FabricUnavailable as fault:
            log.warning("the sweep role was not given back, it will run out", fault=str(fault))

    async def once(self) -> None:
        """One look at everything."""
        if await self._generation.changed():  # letters may be gone, and nobody misses those of passive runs
            await self._claims.wake_waiting()
            await self._generation.seen()
            self._missed = True  # and once more in the next period: some were just becoming passive
        due = await self._looks.take(LIMIT)
        telemetry.sweep_marks.labels("due").inc(await self._ready.mark(due, if_room=True))
        commanded = await self._claims.commanded(self._stale_after_s, LIMIT)
        await self._inbox.append([Post(run_id, "c") for run_id in commanded])
        telemetry.sweep_marks.labels("commanded").inc(len(commanded))
        await self._orphans_of_dead_nodes()
        self._periods += 1
        if self._periods % LEASES_EVERY == 0:
            await self._runs_without_lease()

    async def _orphans_of_dead_nodes(self) -> None:
        if await self._ready.backlog() > LIMIT:
            return  # they are on offer already; more marks would only be repeats
        nodes = await self._claims.owning_nodes()
        alive = await self._shining([node_beacon(node) for node in nodes]) if nodes else set()
        dead = [node for node in nodes if node_beacon(node) not in alive]
        if dead:
            orphans = await self._leases.missing(await self._claims.owned_by(dead, ORPHANS))
            telemetry.sweep_marks.labels("orphaned").inc(await self._ready.mark(orphans, if_room=True))

    async def _runs_without_lease(self) -> None:
        after = NOBODY
        while owned := await self._claims.owned(after, LIMIT):
            orphans = await self._leases.missing(owned)
            telemetry.sweep_marks.labels("orphaned").inc(await self._ready.mark(orphans, if_room=True))
            after = owned[-1]
