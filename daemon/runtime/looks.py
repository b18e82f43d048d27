"""Looks without a holder: what became of the calls of passive runs is asked here, and only an answer wakes a run.

The sweep hands in what is due (so it happens on the node that has its role); ``run`` asks beside it, in batches that
are bounded in time, and holds up nothing. A run is handed back when more than a look may be owed, or when letters wait
in its inbox. A RESULT goes to the inbox like any other letter, and whoever claims the run folds it. Where there is none
``wake_at`` moves on, fenced. Until then it stands as it was: a node that dies while it looks leaves all to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from daemon import telemetry
from daemon.errors import FabricUnavailable, StoreUnavailable
from daemon.fabric.inbox import Inbox, Post
from daemon.fabric.ready import Ready
from daemon.machine.commands import RunId
from daemon.machine.effects import Passive, next_alarm, only_looks
from daemon.store.passive import Due, PassiveRuns
from daemon.telemetry import log
from gateway_client import Envelope

BATCH = 1000
"""Runs looked at together."""
WITHIN_S = 5.0
"""After this the calls of a batch that could not be asked about are left for ``AGAIN_MS``."""
AGAIN_MS = 10_000


class Results(Protocol):
    """The Gateways' result stores; what could not be asked in time is missing from the answer."""

    async def of(self, req_ids: Sequence[str], *, within_s: float) -> Mapping[str, Envelope | None]: ...


class Looks:
    """The looks of this node. ``take`` synchronously, ``run`` until cancelled."""

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
        self._wanted: dict[RunId, tuple[Due, Passive]] = {}
        """Not finished with; the batch under way stands at the beginning."""
        self._bell = asyncio.Event()

    @property
    def under_way(self) -> Collection[RunId]:
        """The runs that were taken and are not finished with."""
        return self._wanted.keys()

    def take(self, due: Sequence[Due]) -> list[RunId]:
        """Take those that only look; answers the others, which need a holder."""
        others: list[RunId] = []
        for one in due:
            if one.passive is not None and only_looks(one.passive, one.now):
                self._wanted[one.run_id] = (one, one.passive)
            else:
                others.append(one.run_id)
        if self._wanted:
            self._bell.set()
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

    async def _look_at(self, batch: Mapping[RunId, tuple[Due, Passive]]) -> None:
        told = await self._waiting(list(batch))
        if told:
            telemetry.looks.labels("letters").inc(
                await self._ready.mark([run_id for run_id in batch if run_id in told], if_room=True)
            )
        asked = {run_id: one for run_id, one in batch.items() if run_id not in told}
        answers = await self._results.of([passive.req_id for _, passive in asked.values()], within_s=WITHIN_S)
        await self._inbox.append(list(_posts(asked, answers)))
        asleep = await self._runs.sleep_on(
            [
                (due, _again_at(due, passive, known=passive.req_id in answers))
                for due, passive in asked.values()
                if not _is_result(passive, answers.get(passive.req_id))
            ]
        )
        _count(asked, answers, asleep)


def _posts(asked: Mapping[RunId, tuple[Due, Passive]], answers: Mapping[str, Envelope | None]) -> Iterator[Post]:
    """Each RESULT as a letter, which the claim that it leads to will fold."""
    for run_id, (_, passive) in asked.items():
        stored = answers.get(passive.req_id)
        if stored is not None and _is_result(passive, stored):
            yield Post(run_id, "h", stored.raw)


def _is_result(passive: Passive, stored: Envelope | None) -> bool:
    """Anybody may have written to a Gateway's store: what speaks of something else is nothing."""
    return stored is not None and stored.type == "RESULT" and stored.req_id == passive.req_id


def _again_at(due: Due, passive: Passive, *, known: bool) -> int | None:
    """When to look again; soon, if somebody who may have the RESULT could not be asked."""
    alarm = next_alarm(passive, due.now)
    return alarm if known or alarm is None else min(alarm, due.now + AGAIN_MS)


def _count(
    asked: Mapping[RunId, tuple[Due, Passive]], answers: Mapping[str, Envelope | None], asleep: set[RunId]
) -> None:
    for run_id, (_, passive) in asked.items():
        stored = answers.get(passive.req_id)
        if _is_result(passive, stored):
            outcome = "found"
        elif passive.req_id not in answers:
            outcome = "away"
        else:
            outcome = "nothing" if run_id in asleep else "overtaken"
        telemetry.looks.labels(outcome).inc()
