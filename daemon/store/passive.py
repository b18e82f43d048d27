"""Passive runs whose time has come, with what tells the machine whether they need a holder; and when to look next.

Used by the sweep and its looks, on one node at a time; but nothing relies on that. It never claims a run: what it
writes is ``wake_at`` alone, of a run that nobody has claimed, and that nobody else has woken, since it was read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg

from daemon.machine.commands import Epoch, ReqId, RunId
from daemon.machine.effects import Passive
from daemon.store.pool import Pool, reading
from daemon.store.sql import columns

# The newest attempt as LOAD_ATTEMPTS finds it. Of the snapshot only one number is read, though all of it is parsed for
# that: so not of a run that has called no tool yet, and of those there may be a flood.
_DUE = """
SELECT r.id, r.epoch, r.wake_at, r.status, r.paused_reason,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
    (extract(epoch FROM r.started_at) * 1000)::bigint AS started_ms,
    a.req_id, a.step_index = r.current_step_index AS current, a.state, a.intended_at_ms, a.deadline_at_ms, a.canceling,
    CASE WHEN a.req_id IS NOT NULL THEN (
        SELECT s.snapshot ->> 'run_timeout_ms' FROM workflow_run_specs s WHERE s.run_id = r.id) END AS limit_ms
FROM (
    SELECT * FROM workflow_runs
    WHERE owner IS NULL AND wake_at IS NOT NULL AND wake_at <= clock_timestamp() AND id <> ALL($2::uuid[])
    ORDER BY wake_at LIMIT $1
) AS r
LEFT JOIN LATERAL (
    SELECT req_id, step_index, state, intended_at_ms, deadline_at_ms, canceling
    FROM workflow_run_attempts WHERE run_id = r.id ORDER BY step_index DESC, attempt DESC LIMIT 1
) AS a ON true
ORDER BY r.wake_at
"""

# `wake_at` stands in the fence too: who wakes the run meanwhile means the time after the look, not before it.
_SLEEP_ON = """
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::timestamptz[], $4::bigint[]) AS t(id, epoch, seen, wake_ms)
), held AS (
    SELECT r.id FROM workflow_runs r JOIN given g ON g.id = r.id
    WHERE r.owner IS NULL AND r.epoch = g.epoch AND r.wake_at = g.seen ORDER BY r.id FOR UPDATE OF r
)
UPDATE workflow_runs r SET wake_at = to_timestamp(g.wake_ms / 1000.0)
FROM given g JOIN held ON held.id = g.id WHERE r.id = held.id
RETURNING r.id
"""


class Due(NamedTuple):
    """A passive run whose time has come, as it was read at ``now`` (epoch ms)."""

    run_id: RunId
    epoch: Epoch
    wake_at: datetime
    now: int
    passive: Passive | None
    """None: it has called no tool yet, or cannot be read; whoever claims it will see."""


class PassiveRuns:
    """The runs that nobody holds."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def due(self, limit: int, but: Collection[RunId] = ()) -> list[Due]:
        """Those whose ``wake_at`` has come, oldest first, without those of ``but``."""
        async with reading(self._pool) as connection:
            return [_due(row) for row in await connection.fetch(_DUE, limit, list(but))]

    async def sleep_on(self, looked_at: Sequence[tuple[Due, int | None]]) -> set[RunId]:
        """Let each sleep until then (epoch ms; None: until somebody speaks). Answers those that did.

        A run that was claimed or woken since it was read is left alone.
        """
        rows = [(one.run_id, one.epoch, one.wake_at, wake_at) for one, wake_at in looked_at]
        if not rows:
            return set()
        async with reading(self._pool) as connection:
            return {RunId(row["id"]) for row in await connection.fetch(_SLEEP_ON, *columns(rows, 4))}


def _due(row: asyncpg.Record) -> Due:
    return Due(RunId(row["id"]), Epoch(row["epoch"]), row["wake_at"], row["now_ms"], _passive(row))


def _passive(row: asyncpg.Record) -> Passive | None:
    limit, started_at = row["limit_ms"], row["started_ms"]
    if row["req_id"] is None or (limit is not None and not limit.isdecimal()):
        return None
    terminal = row["status"] not in ("running", "paused")
    return Passive(
        status=row["status"],
        paused_reason=row["paused_reason"],
        ends_at=None if limit is None or started_at is None or terminal else started_at + int(limit),
        req_id=ReqId(row["req_id"]),
        current=row["current"],
        state=row["state"],
        intended_at=row["intended_at_ms"],
        deadline_at=row["deadline_at_ms"],
        canceling=row["canceling"],
    )
