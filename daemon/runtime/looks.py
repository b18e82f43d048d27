"""Looks without a holder: what became of the calls of passive runs is asked here, and only an answer wakes a run.

The sweep calls ``take`` (so it happens on the node that has its role); ``run`` asks beside it, in batches that are
bounded in time, and holds up nothing. A run is handed back when more than a look may be owed, or when letters wait in
its inbox. A RESULT goes to the inbox like any other letter, and whoever claims the run folds it. Where there is none
``wake_at`` moves on, fenced. Until then it stands as it was: a node that dies while it looks leaves all to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.fabric.inbox import Inbox, Post
from daemon.fabric.ready import Ready
from daemon.machine.commands import RunId
from daemon.machine.effects import Passive, next_alarm, only_looks
from daemon.store.passive import Due, PassiveRuns
from daemon.telemetry import log
from gateway_client import Envelope

BATCH = 100
"""Runs looked at together; their RESULTs may be large, and are in memory at once."""
QUEUE = 5000
"""Looks that wait for their turn; what is due beyond them is left for ``AGAIN_MS``, so that it hides nothing else."""
WITHIN_S = 5.0
"""After this the calls of a batch that could not be asked about are left for ``AGAIN_MS``."""
AGAIN_MS = 10_000


class Results(Protocol):
    """The Gateways' result stores; what could not be asked in time is missing from the answer."""

    async def of(self, req_ids: Sequence[str], *, within_s: float) -> Mapping[str, Envelope | None]: ...


class Look(NamedTuple):
    """A run to be looked at."""

    due: Due
    passive: Passive

    def again(self, *, known: bool) -> tuple[Due, int | None]:
        """When to look again; soon, unless it is known that nobody stores a RESULT yet."""
        alarm = next_alarm(self.passive, self.due.now)
        return self.due, alarm if known or alarm is None else min(alarm, self.due.now + AGAIN_MS)


class Looks:
    """The looks of this node; ``run`` until cancelled."""

    def __init__(
        self,
        *,
        runs: PassiveRuns,
        inbox: Inbox,
        ready: Ready,
        waiting: Callable[[Sequence[RunId]], Awaitable[set[RunId]]],
        results: Results,
    ) -> None:
        self._runs = runs
        self._inbox = inbox
        self._ready = ready
        self._waiting = waiting
        self._results = results
        self._wanted: dict[RunId, Look] = {}
        """Not finished with; the batch under way stands at the beginning."""
        self._bell = asyncio.Event()

    async def take(self, limit: int) -> list[RunId]:
        """Of so many runs that are due take those that only look; answers the others, which need a holder."""
        others: list[RunId] = []
        late: list[Look] = []
        for due in await self._runs.due(limit, self._wanted.keys()):
            if due.passive is None or not only_looks(due.passive, due.now):
                others.append(due.run_id)
            elif len(self._wanted) < QUEUE:
                self._wanted[due.run_id] = Look(due, due.passive)
            else:
                late.append(Look(due, due.passive))
        if self._wanted:
            self._bell.set()
        if late:
            telemetry.looks.labels("postponed").inc(len(late))
            await self._runs.sleep_on([look.again(known=False) for look in late])
        return others

    async def run(self) -> None:
        """Look at what was taken, until cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            while self._wanted:
                batch = dict(list(self._wanted.items())[:BATCH])
                try:
                    await self._look_at(batch)
                except (FabricUnavailable, StoreUnavailable) as fault:
                    log.warning("looks wait", runs=len(batch), fault=str(fault))
                except Exception:  # noqa: BLE001 - they stay due, and a look may wait; the node's other work may not
                    log.exception("looks failed", runs=len(batch))
                for run_id in batch:
                    del self._wanted[run_id]

    async def _look_at(self, batch: Mapping[RunId, Look]) -> None:
        told = await self._waiting(list(batch))
        if told:
            marked = await self._ready.mark([run_id for run_id in batch if run_id in told], if_room=True)
            telemetry.looks.labels("letters").inc(marked)
        looks = [look for run_id, look in batch.items() if run_id not in told]
        answers = await self._results.of([look.passive.req_id for look in looks], within_s=WITHIN_S)
        found: list[Post] = []
        nothing: list[tuple[Due, int | None]] = []
        away: list[tuple[Due, int | None]] = []
        for look in looks:
            stored = answers.get(look.passive.req_id)
            if stored is not None and stored.type == "RESULT" and stored.req_id == look.passive.req_id:
                found.append(Post(look.due.run_id, "h", stored.raw))
            elif look.passive.req_id in answers:
                nothing.append(look.again(known=True))
            else:
                away.append(look.again(known=False))
        await self._inbox.append(found)
        asleep = await self._runs.sleep_on([*nothing, *away])
        overtaken = len(nothing) + len(away) - len(asleep)
        for outcome, count in (("found", found), ("nothing", nothing), ("away", away)):
            telemetry.looks.labels(outcome).inc(len(count))
        telemetry.looks.labels("overtaken").inc(overtaken)
