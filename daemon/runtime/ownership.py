"""Taking runs, keeping them, letting them go. Redis decides who tries; the claim in Postgres is what counts.

Loops of the node: ``take`` (offers of the ready stream), ``listen`` (the doorbell), ``renew`` (leases), ``leave``
(passivation). Letting go releases the lease first and then clears the owner: a crash between looks like an orphan,
which the sweep finds; the other way round a run could be owned by nobody who knows.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.machine.commands import Epoch, RunId
from daemon.machine.state import Run
from daemon.runtime.actor import Actor
from daemon.runtime.clock import Clock
from daemon.runtime.ports import Claims, Held, Inbox, Leases, Offer, Ready
from daemon.runtime.residents import Residents
from daemon.telemetry import log

BLOCK_MS = 1000
RETRY_S = 0.5
TAKE_LIMIT = 50
"""Most runs claimed in one statement, so that several nodes share a flood."""


class Ownership:
    """What this node owns. ``capacity``: most runs in memory; it takes only what it has room for."""

    def __init__(
        self,
        *,
        residents: Residents,
        clock: Clock,
        claims: Claims,
        leases: Leases,
        inbox: Inbox,
        ready: Ready,
        node: str,
        lease_ttl_s: float,
        capacity: int,
    ) -> None:
        self._residents = residents
        self._clock = clock
        self._claims = claims
        self._leases = leases
        self._inbox = inbox
        self._ready = ready
        self._node = node
        self._ttl_s = lease_ttl_s
        self._capacity = capacity
        self._leaving: asyncio.Queue[Actor] = asyncio.Queue()
        self._taking = True

    async def take(self) -> None:
        """Claim what is offered, as long as there is room."""
        reclaim_at = self._clock.monotonic()
        while self._taking:
            room = self._capacity - len(self._residents)
            if room <= 0:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                offers = await self._ready.take(min(room, TAKE_LIMIT), BLOCK_MS)
                if self._clock.monotonic() >= reclaim_at:
                    reclaim_at = self._clock.monotonic() + self._ttl_s
                    offers += await self._ready.reclaim(int(self._ttl_s * 1000), min(room, TAKE_LIMIT))
                if offers:
                    await self._activate(offers)
            except (FabricUnavailable, StoreUnavailable) as fault:
                log.warning("taking runs waits", fault=str(fault))
                await asyncio.sleep(RETRY_S)

    def stop_taking(self) -> None:
        """Claim nothing more; the first word of a drain."""
        self._taking = False

    async def listen(self) -> None:
        """Ring the residents whose bell rang; a bell for a run that has just left becomes an offer."""
        while True:
            try:
                rung = await self._inbox.listen(self._node, BLOCK_MS)
                strangers = [run_id for run_id, urgency in rung.items() if not self._residents.ring(run_id, urgency)]
                if strangers:
                    await self._ready.mark(strangers)
            except FabricUnavailable as fault:
                log.warning("the doorbell waits", fault=str(fault))
                await asyncio.sleep(RETRY_S)

    async def renew(self, missed: Callable[[Actor], None]) -> None:
        """Keep the leases; ``missed`` is told of runs whose lease had vanished, so letters may have too."""
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            started = self._clock.monotonic()
            actors = list(self._residents)
            try:
                found = await self._leases.renew([_held(actor) for actor in actors])
            except FabricUnavailable as fault:
                log.warning("leases could not be renewed", fault=str(fault))
                continue
            for actor in actors:
                renewal = found.get(actor.id)
                if renewal == "l":
                    telemetry.leases_lost.inc()
                    log.info("another node took the lease", run_id=str(actor.id))
                    self._residents.remove(actor)
                elif renewal is not None:
                    actor.renewed_at = started
                    if renewal == "t":
                        telemetry.leases_lost.inc()
                        missed(actor)

    def let_go(self, actor: Actor) -> None:
        """This run only waits (and is busy until it has left)."""
        self._leaving.put_nowait(actor)

    async def leave(self) -> None:
        """Release what only waits, in batches."""
        while True:
            actors = [await self._leaving.get()]
            while not self._leaving.empty():
                actors.append(self._leaving.get_nowait())
            try:
                await self._release(actors)
            except (FabricUnavailable, StoreUnavailable) as fault:
                log.warning("letting runs go waits", fault=str(fault))
                self._residents.put_back(actors, self._clock.monotonic() + RETRY_S)

    async def hand_over(self) -> int:
        """Drain's last act: give every run to the others, without waiting for leases to run out. Answers how many."""
        actors = list(self._residents)
        released = await self._leases.release([_held(actor) for actor in actors], force=True)
        gone = [actor for actor in actors if released.get(actor.id) == "r"]
        await self._claims.release([(*_fence(actor), actor.deadline()) for actor in gone])
        for actor in actors:
            self._residents.remove(actor)
        return len(gone)

    async def _release(self, actors: Sequence[Actor]) -> None:
        found = await self._leases.release([_held(actor) for actor in actors])
        gone = [actor for actor in actors if found.get(actor.id) == "r"]
        for actor in actors:
            if found.get(actor.id) == "w":
                self._residents.put_back([actor], self._clock.monotonic())
            elif found.get(actor.id) == "l":
                telemetry.leases_lost.inc()
                self._residents.remove(actor)
        if not gone:
            return
        try:
            await self._claims.release([(*_fence(actor), actor.deadline()) for actor in gone])
        finally:
            for actor in gone:
                self._residents.remove(actor)
        telemetry.passivations.inc(len(gone))
        rung = [actor.id for actor in gone if actor.rung is not None]
        if rung:
            await self._ready.mark(rung)

    async def _activate(self, offers: Sequence[Offer]) -> None:
        wanted = {
            run_id: f"{self._node}/{secrets.token_urlsafe(6)}"
            for _, run_id in offers
            if self._residents.get(run_id) is None
        }
        started = self._clock.monotonic()
        taken = await self._leases.take(wanted) if wanted else set()
        mine = {run_id: owner for run_id, owner in wanted.items() if run_id in taken}
        telemetry.claims.labels("held_already").inc(len(wanted) - len(mine))
        if mine:
            claimed, now_ms = await self._claims.claim(mine)
            if claimed:
                self._clock.observe(now_ms)
            await self._move_in(claimed, mine, started)
        await self._ready.done([entry for entry, _ in offers])

    async def _move_in(self, claimed: Sequence[tuple[Run, Epoch]], mine: dict[RunId, str], started: float) -> None:
        held: list[Held] = [(run.id, mine[run.id], epoch) for run, epoch in claimed]
        ours = await self._leases.seal(held)
        for run, epoch in claimed:
            if run.id not in ours:
                telemetry.claims.labels("lease_lost").inc()
                continue
            telemetry.claims.labels("claimed").inc()
            quiet = self._clock.monotonic()
            self._residents.add(Actor(run=run, epoch=epoch, owner=mine[run.id], renewed_at=started, quiet_since=quiet))
        unknown = [(run_id, owner, Epoch(0)) for run_id, owner in mine.items() if run_id not in {h[0] for h in held}]
        if unknown:
            await self._leases.release(unknown)


def _held(actor: Actor) -> Held:
    return (actor.id, actor.owner, actor.epoch)


def _fence(actor: Actor) -> tuple[RunId, Epoch, str]:
    return (actor.id, actor.epoch, actor.owner)
