"""The journal: commits transitions of many runs in one statement, fenced, and says exactly what became of each.

Used by ``runtime/host`` through ``ports.Journal``. A transition is committed when run, epoch, owner and last_seq are as
the turn found them. When the reply is lost, or no row moved, the row is read: mine and advanced to my target means it
was committed; mine and unchanged, repeat; else fenced. So nothing is ever applied twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeVar

import asyncpg

from daemon import telemetry
from daemon.machine.commands import RunId
from daemon.machine.record import Outcomes, Transition
from daemon.store.pool import COMMAND_TIMEOUT_S, CONNECT_TIMEOUT_S, CONTENDED, GONE, Connection
from daemon.store.sql import COMMIT, WHERE_IT_STANDS
from daemon.telemetry import log

REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
BACKOFF_MAX_S = 2.0

_T = TypeVar("_T")


class Lane:
    """One connection that carries commits, reopened for ever. Not for concurrent use: its owner commits in turn."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Connect now, so that the first commit need not. Raises what asyncpg raises."""
        await self._connected()

    async def close(self) -> None:
        """Say good-bye to Postgres; one that does not answer is left without."""
        if self._connection is not None and not self._connection.is_closed():
            try:
                await self._connection.close(timeout=CONNECT_TIMEOUT_S)
            except GONE:
                self._drop()

    async def commit(self, batch: Sequence[Transition]) -> Outcomes:
        """Commit until the outcome of every transition is known. A run stands in a batch once.

        Does not raise for what Postgres says or for its absence: it repeats until it knows.
        """
        outcomes = Outcomes()
        await self._settle(list(batch), outcomes)
        return outcomes

    async def _settle(self, batch: list[Transition], outcomes: Outcomes) -> None:
        pause_s = 0.05
        while batch:
            try:
                moved = await self._commit_once(batch)
                outcomes.committed.update(moved)
                left = [one for one in batch if one.run_id not in moved]
                batch = await self._resolve(left, outcomes) if left else []
            except CONTENDED:
                telemetry.commit_repeats.inc()
            except REFUSED as fault:
                await self._split(batch, outcomes, fault)
                return
            except GONE as fault:
                telemetry.commit_repeats.inc()
                log.warning("the journal waits for Postgres", fault=str(fault) or type(fault).__name__)
                self._drop()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
                batch = await self._resolve_patiently(batch, outcomes)

    async def _split(self, batch: list[Transition], outcomes: Outcomes, fault: Exception) -> None:
        """Halve until the culprit is alone: its neighbours never suffer."""
        if len(batch) == 1:
            telemetry.poisoned.inc()
            log.error("Postgres can never accept a transition", run_id=str(batch[0].run_id), fault=str(fault))
            outcomes.poisoned[batch[0].run_id] = str(fault)
            return
        middle = len(batch) // 2
        await self._settle(batch[:middle], outcomes)
        await self._settle(batch[middle:], outcomes)

    async def _commit_once(self, batch: list[Transition]) -> dict[RunId, int]:
        started = time.monotonic()
        connection = await self._connected()
        rows = await connection.fetch(COMMIT, *_arguments(batch))
        telemetry.commit_seconds.observe(time.monotonic() - started)
        telemetry.commits.inc()
        telemetry.transitions.inc(len(rows))
        return {RunId(row[0]): row[1] for row in rows}

    async def _resolve(self, batch: list[Transition], outcomes: Outcomes) -> list[Transition]:
        """Read the rows of transitions whose outcome is unknown; answers those to repeat."""
        connection = await self._connected()
        rows = await connection.fetch(WHERE_IT_STANDS, [one.run_id for one in batch])
        found = {row["id"]: row for row in rows}
        again: list[Transition] = []
        for one in batch:
            row = found.get(one.run_id)
            mine = row is not None and row["epoch"] == one.epoch and row["owner"] == one.owner
            if row is not None and mine and one.events and row["last_seq"] == one.run.last_seq:
                outcomes.committed[one.run_id] = row["now_ms"]
            elif row is not None and mine and row["last_seq"] == one.expected_seq:
                again.append(one)
            else:
                outcomes.fenced.add(one.run_id)
        return again

    async def _resolve_patiently(self, batch: list[Transition], outcomes: Outcomes) -> list[Transition]:
        pause_s = 0.05
        while True:
            try:
                return await self._resolve(batch, outcomes)
            except GONE:
                self._drop()
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(
                self._url,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,  # a server that vanished without a word is not waited for for ever
                server_settings={"application_name": "runwarden journal"},
            )
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _columns(rows: Sequence[Sequence[_T]], width: int) -> list[list[_T]]:
    """Rows as ``width`` columns, for ``unnest``."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def _arguments(batch: Sequence[Transition]) -> list[list[object]]:
    """The arrays of COMMIT, in the order of its parameters."""
    runs: list[Sequence[object]] = []
    steps: list[Sequence[object]] = []
    attempts: list[Sequence[object]] = []
    events: list[Sequence[object]] = []
    verdicts: list[Sequence[object]] = []
    for one in batch:
        run, run_id = one.run, one.run_id
        fence = (run_id, one.epoch, one.owner, one.expected_seq)
        place = (run.last_seq, run.status, run.paused_reason, run.paused_seq, run.step_index)
        times = (one.at, run.started_at, run.finished_at)
        runs.append((*fence, *place, *times, run.error_code, run.error_message))
        steps += [(run_id, *row) for row in one.steps]
        events += [(run_id, row.seq, row.event_type, row.payload.decode()) for row in one.events]
        verdicts += [(run_id, *row) for row in one.verdicts]
        for row in one.attempts:
            a = row.attempt
            name = (run_id, a.step_index, a.index, a.req_id, a.epoch, a.state)
            clock = (a.first_intended_at, a.intended_at, a.ack_by, a.deadline_at, a.acked_at)
            cancel = (a.canceling, a.cancel_until)
            unsent = (a.retry_at, a.tries, a.unsent_reason, a.unsent_detail)
            end = (a.ended_at, a.answered, a.log_bytes, *((a.mark.term, a.mark.number) if a.mark else (None, None)))
            attempts.append((*name, *clock, *cancel, *unsent, *end, *row[1:]))
    return [
        *_columns(runs, 14),
        *_columns(steps, 10),
        *_columns(attempts, 27),
        *_columns(events, 4),
        *_columns(verdicts, 5),
    ]
