"""Taking runs, keeping them, letting them go. Redis decides who tries; the claim in Postgres is what counts.

Loops of the node: ``take`` (offers of the ready stream), ``listen`` (the doorbell), ``renew`` (leases), ``leave``
(passivation). Letting go releases the lease first and then clears the owner: a crash between looks like an orphan,
which the sweep finds; the other way round a run could be owned by nobody who knows.

Where the database turns out older than what this node knew of a run (when it renews, lets go, or takes again what it
let go lately), the run is parked: see ``store/quarantine``.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.machine.commands import Epoch, RunId
from daemon.machine.record import Known
from daemon.machine.state import Run
from daemon.runtime.actor import Actor
from daemon.runtime.clock import Clock
from daemon.runtime.ports import Claims, Held, Inbox, Leases, Offer, Ready
from daemon.runtime.residents import Residents
from daemon.telemetry import log

BLOCK_MS = 1000
RETRY_S = 0.5
RECLAIM_AFTER_TTLS = 1.5
"""Offers a dead node took are taken again after this many TTLs: by then its leases have surely run out."""
GATHER_S = 0.005
"""After a claim, before the next look: runs that come one after another are claimed and carried on together, which
takes less CPU for each. A run that comes alone is claimed at once."""
TAKE_LIMIT = 50
"""Most runs claimed in one statement, so that several nodes share a flood."""
REMEMBERED = 20_000
"""Runs let go whose last state a node remembers, to notice at the next claim that Postgres has forgotten it."""


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
        self._let_go: OrderedDict[RunId, Known] = OrderedDict()
        self._leaving: asyncio.Queue[Actor] = asyncio.Queue()
        self._doubted: dict[Actor, None] = {}
        """Whose lease had vanished and was taken again; in order, so that simulated nodes do the same thing twice."""
        self._leasing = asyncio.Lock()
        """Renewals and releases take turns: a renewal under way would take back a lease that was just given up."""
        self._taking = True
        self._reading: asyncio.Task[list[Offer]] | None = None
        self._took = asyncio.Event()
        """Nothing is being claimed any more."""
        self._took.set()

    async def take(self) -> None:
        """Claim what is offered, as long as there is room, until ``stop_taking``."""
        self._took.clear()
        try:
            await self._take()
        finally:
            self._took.set()

    async def stop_taking(self) -> None:
        """Claim nothing more; the first word of a drain. On return no claim is under way."""
        self._taking = False
        if self._reading is not None:
            self._reading.cancel()
        await self._took.wait()

    async def _take(self) -> None:
        reclaim_at = self._clock.monotonic()
        while self._taking:
            room = self._capacity - len(self._residents)
            if room <= 0:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                offers = await self._read(min(room, TAKE_LIMIT))
                if self._clock.monotonic() >= reclaim_at:
                    reclaim_at = self._clock.monotonic() + self._ttl_s
                    offers += await self._ready.reclaim(
                        int(self._ttl_s * RECLAIM_AFTER_TTLS * 1000), min(room, TAKE_LIMIT)
                    )
                if offers:
                    await self._activate(offers)
                    if len(offers) < TAKE_LIMIT:
                        await asyncio.sleep(GATHER_S)
            except (FabricUnavailable, StoreUnavailable) as fault:
                log.warning("taking runs waits", fault=str(fault))
                await asyncio.sleep(RETRY_S)

    async def _read(self, count: int) -> list[Offer]:
        """The next offers; none once ``stop_taking`` has cut the waiting short."""
        self._reading = asyncio.create_task(self._ready.take(count, BLOCK_MS))
        try:
            return await self._reading
        except asyncio.CancelledError:
            if self._taking:
                self._reading.cancel()
                raise
            return []
        finally:
            self._reading = None

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
        """Keep the leases; ``missed`` is told of runs whose lease had vanished, so letters may have too.

        A lease taken again proves nothing: another node may have had the run in between and let it go. Until Postgres
        says that the claim stands, such a run is in doubt, and its lease does not count as renewed.
        """
        doubted = self._doubted
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            try:
                async with self._leasing:
                    started = self._clock.monotonic()
                    actors = list(self._residents)
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
                elif renewal == "t":
                    telemetry.leases_lost.inc()
                    actor.doubted = True
                    doubted[actor] = None
                elif renewal == "r" and actor not in doubted:
                    actor.renewed_at = started
            if doubted:
                try:
                    await self._look_again(doubted, started, missed)
                except (FabricUnavailable, StoreUnavailable) as fault:
                    log.warning("leases that had vanished stay in doubt", runs=len(doubted), fault=str(fault))

    async def _look_again(self, doubted: dict[Actor, None], started: float, missed: Callable[[Actor], None]) -> None:
        """Ask Postgres about claims in doubt; those that fell are dropped, and whoever comes next is called."""
        held = await self._claims.still_held([_held(actor) for actor in doubted])
        fallen = [actor for actor in doubted if actor.id not in held]
        for actor in fallen:
            self._residents.remove(actor)
        if fallen:
            await self._claims.park_lost([_known(actor) for actor in fallen])
            async with self._leasing:
                released = await self._leases.release([_held(actor) for actor in fallen], force=True)
            # While the lease was ours others took the run for held, and dropped its offers.
            await self._ready.mark([actor.id for actor in fallen if released.get(actor.id) != "r"])
            telemetry.fenced.inc(len(fallen))
            log.info("fenced: other nodes had these runs", runs=len(fallen))
        for actor in [actor for actor in doubted if actor not in fallen]:
            actor.renewed_at = started
            actor.doubted = False
            missed(actor)
        doubted.clear()

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

    async def hand_over(self, *, calling: bool = True) -> int:
        """Drain's last act: give every run to the others, without waiting for leases to run out. Answers how many.

        Not ``calling``: all but those of which an effect is still under way.

        Offers that were read and not claimed are given back too; else they would wait until somebody misses them. So
        are leases in doubt of runs that have left: while they were ours, letters rang us, and nobody was called.
        """
        await self._ready.give_back()
        async with self._leasing:
            actors = [actor for actor in self._residents if calling or not actor.open_effects]
            strange = [actor for actor in self._doubted if self._residents.get(actor.id) is not actor]
            released = await self._leases.release([_held(actor) for actor in [*actors, *strange]], force=True)
            for actor in actors:
                self._residents.remove(actor)
        gone = [actor for actor in actors if released.get(actor.id) == "r"]
        await self._clear_owner(gone)
        return len(gone)

    async def _release(self, actors: Sequence[Actor]) -> None:
        async with self._leasing:
            self._residents.put_back([actor for actor in actors if actor.doubted], self._clock.monotonic() + RETRY_S)
            actors = [actor for actor in actors if not actor.doubted]
            found = await self._leases.release([_held(actor) for actor in actors])
            # Whom somebody asked about meanwhile: the answer will find nobody, so the next owner must ask.
            asked = {actor for actor in actors if actor.open_effects}
            for actor in actors:
                if found.get(actor.id) == "w":
                    self._residents.put_back([actor], self._clock.monotonic())
                else:
                    self._residents.remove(actor)
        telemetry.leases_lost.inc(sum(1 for actor in actors if found.get(actor.id) == "l"))
        gone = [actor for actor in actors if found.get(actor.id) == "r"]
        if not gone:
            return
        await self._clear_owner(gone)
        telemetry.passivations.inc(len(gone))
        wanted = [actor.id for actor in gone if actor.rung is not None or actor in asked]
        if wanted:
            await self._ready.mark(wanted)

    async def _clear_owner(self, gone: Sequence[Actor]) -> None:
        """Tell Postgres that these were let go; what it does not know of them any more is parked."""
        moved = await self._claims.release(
            [
                (actor.id, actor.epoch, actor.owner, actor.deadline(self._clock.now()), actor.run.last_seq)
                for actor in gone
            ]
        )
        left = [actor for actor in gone if actor.id not in moved]
        if left:
            await self._claims.park_lost([_known(actor) for actor in left])
        for actor in gone:
            if not actor.run.terminal:
                self._let_go[actor.id] = _known(actor)
        while len(self._let_go) > REMEMBERED:
            self._let_go.popitem(last=False)

    async def _drop_the_lost(self, claimed: list[tuple[Run, Epoch]]) -> list[tuple[Run, Epoch]]:
        """Without the runs that this node knew further on: those are parked. Nothing is forgotten before they are."""
        lost = [
            known
            for run, epoch in claimed
            if (known := self._let_go.get(run.id)) is not None
            and (epoch <= known.epoch or run.last_seq < known.last_seq)
        ]
        parked = await self._claims.park_lost(lost) if lost else set()
        for run, _ in claimed:
            self._let_go.pop(run.id, None)
        return [(run, epoch) for run, epoch in claimed if run.id not in parked]

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
            try:
                claimed, now_ms = await self._claims.claim(mine)
            except StoreUnavailable:
                await self._offer_again(mine)
                await self._ready.done([entry for entry, _ in offers])
                raise
            if claimed:
                self._clock.observe(now_ms)
                claimed = await self._drop_the_lost(claimed)
            await self._move_in(claimed, mine, started)
        await self._ready.done([entry for entry, _ in offers])

    async def _offer_again(self, mine: Mapping[RunId, str]) -> None:
        """These could not be claimed. Whoever gets the offers next must not take the runs for held."""
        await self._leases.release([(run_id, owner, Epoch(0)) for run_id, owner in mine.items()], force=True)

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


def _known(actor: Actor) -> Known:
    return Known(actor.id, actor.epoch, actor.owner, actor.run.last_seq)
