"""Parking runs whose database came back older than they are: after an asynchronous failover, or from a backup.

Used by ``journal`` and ``claims`` when an owner finds the database behind what it knew (``park_lost``), and by
``runwarden quarantine`` before nodes may claim after a restore (``park_unfinished``). Each batch is one transaction:
take the runs with an epoch that nobody has, tell them ``RunParked``, let them go.

How an owner knows. What it has committed cannot vanish: an epoch or ``last_seq`` below its own, or its own epoch under
another's name, means that commits were lost. (A higher epoch, or nobody under its own, is the ordinary fence.) It then
knows nothing that may be trusted: the tool call that it intended last may have run, and the row does not say so.

Why it is safe. In the state that came back:

* an attempt in flight was intended under an epoch below the new one, so it is inquired and never sent again;
* a step that looks pending may have run in the time that was lost. It would be attempted under the ``req_id`` that it
  had then (same run, step and attempt), which is wanted: a late RESULT, or the one in the Gateway's store, tells of
  that call. But the call must not be made again unseen. So the run stands still, and ``decide`` lets it go on only by
  the word of a person who was told (``resume`` with ``confirm: run_again``), as with an unknown outcome;
* a step that waits for approval asks for it anew, since the approval stands at a pause that is no more;
* a run that had ended in the time that was lost is parked too, for the same reason.

What nobody can know: a run that came to be in the time that was lost is gone, and a run whose last owner has forgotten
it (or died with the database) is not found by ``park_lost``. Therefore ``quarantine``, and therefore "nothing lost"
needs synchronous replication.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

import asyncpg

from daemon import telemetry
from daemon.errors import SetupError
from daemon.machine.commands import Epoch, RunId
from daemon.machine.decide import decide
from daemon.machine.effects import deadline
from daemon.machine.events import COMMITS_LOST, RunParked
from daemon.machine.evolve import Happened, carry
from daemon.machine.needs import Facts, Unknown
from daemon.machine.record import Known, Transition, VerdictRow, record, verdict
from daemon.machine.state import IllegalMove, Limits, Run
from daemon.store import sql
from daemon.store.commit import COMMIT_DECIDING, arguments
from daemon.store.loading import command_of, load
from daemon.store.migrate import missing
from daemon.store.pool import Connection, open_pool, reading
from daemon.telemetry import log

BATCH = 200
"""Runs parked in one transaction of ``park_unfinished``."""

PATIENCE_S = 5.0

LOST = (
    "Postgres came back without the last commits of this run. A tool may have run that is not in its log: "
    "look at what was done, then resume it with confirmation, or cancel it."
)
RESTORED = (
    "Parked after a restore of the database: what the run did since that backup is not in its log. "
    "Look at what was done, then resume it with confirmation, or cancel it."
)


class Census(NamedTuple):
    """Runs by (status, paused reason) as they were; and how many could not be read, which no node can carry either."""

    runs: Counter[tuple[str, str | None]]
    unreadable: int


def is_behind(row: asyncpg.Record, known: Known) -> bool:
    """Whether a row (epoch, owner, last_seq) is older than what its owner has committed. See this module's head."""
    if row["epoch"] < known.epoch or row["last_seq"] < known.last_seq:
        return True
    return bool(row["epoch"] == known.epoch and row["owner"] not in (None, known.owner))


async def park_lost(connection: Connection, known: Sequence[Known]) -> set[RunId]:
    """Park those of the runs that the database is behind; answers them. Raises what asyncpg raises: then none is."""
    token = _token()
    async with connection.transaction():
        columns = [list(column) for column in zip(*known, strict=True)] if known else [[], [], [], []]
        rows = await connection.fetch(sql.CLAIM_BEHIND, *columns, token)
        parked, unreadable = await _park(connection, rows, token, LOST)
    if rows:
        telemetry.commits_lost.inc(len(rows))
        log.error(
            "Postgres has lost commits: these runs are parked",
            runs=[str(run.id) for run in parked],
            unreadable=[str(run_id) for run_id in unreadable],
        )
    return {run.id for run in parked}


async def quarantine(url: str, *, really: bool) -> Census:
    """Park every unfinished run of a database, or only count them. Raises SetupError when that cannot begin.

    When Postgres goes away in the midst of it, StoreUnavailable: what was parked is, and a repeat parks the rest.
    """
    pool = await open_pool(url, size=1, patience_s=PATIENCE_S)
    try:
        unseen = await asyncio.to_thread(missing, url)
        if unseen:
            raise SetupError(f"The database lacks migrations ({', '.join(unseen)}): run 'runwarden migrate' first.")
        async with reading(pool) as connection:
            return await (park_unfinished if really else count_unfinished)(connection)
    finally:
        await pool.close()


async def count_unfinished(connection: Connection) -> Census:
    """What ``park_unfinished`` would park."""
    rows = await connection.fetch(sql.COUNT_UNFINISHED, COMMITS_LOST)
    return Census(Counter({(row["status"], row["paused_reason"]): row["runs"] for row in rows}), 0)


async def park_unfinished(connection: Connection) -> Census:
    """Park every run that has not ended and is not parked so already. Safe to repeat, and while nodes run.

    A node that holds one of the runs is fenced at its next commit, and drops it.
    """
    runs, unreadable, after, token = Counter[tuple[str, str | None]](), 0, UUID(int=0), _token()
    while True:
        ids = [row["id"] for row in await connection.fetch(sql.UNFINISHED, after, COMMITS_LOST, BATCH)]
        if not ids:
            return Census(runs, unreadable)
        async with connection.transaction():
            rows = await connection.fetch(sql.CLAIM_UNFINISHED, ids, token)
            parked, damaged = await _park(connection, rows, token, RESTORED)
        runs.update((run.status, run.paused_reason) for run in parked)
        unreadable += len(damaged)
        after = ids[-1]


async def _park(
    connection: Connection, rows: Sequence[asyncpg.Record], token: str, message: str
) -> tuple[list[Run], list[RunId]]:
    """Park the claimed runs and let them go; answers them as they were, and those that cannot be read."""
    if not rows:
        return [], []
    runs, unreadable = await load(connection, rows)
    now = max(row["now_ms"] for row in rows)
    transitions: list[Transition] = []
    damaged = {row["id"]: (row["epoch"], row["log_seq"]) for row in unreadable}
    for run, epoch in runs:
        try:
            transitions.append(await _parking(connection, run, epoch, token, now, message))
        except (IllegalMove, AttributeError, LookupError, TypeError, ValueError):  # rows that say what no engine wrote
            log.exception("a run cannot be parked", run_id=str(run.id))
            damaged[run.id] = (epoch, run.last_seq)
    given = arguments(transitions)
    await connection.fetch(COMMIT_DECIDING, *given.moved, *given.decided)
    released = [(one.run_id, one.epoch, token, deadline(one.run, now), one.run.last_seq) for one in transitions]
    released += [(run_id, epoch, token, None, last_seq) for run_id, (epoch, last_seq) in damaged.items()]
    await connection.fetch(sql.RELEASE, *sql.columns(released, 5))
    return [run for run, _ in runs if run.id not in damaged], [RunId(run_id) for run_id in damaged]


async def _parking(connection: Connection, run: Run, epoch: Epoch, token: str, now: int, message: str) -> Transition:
    """The transition that parks a run. One that has not begun begins first, or its log would begin with a pause."""
    now, verdicts, happened = max(now, run.last_at), list[VerdictRow](), list[Happened]()
    after, facts = run, Facts(epoch=epoch, gateway_ready=False, limits=Limits(), grounds=Unknown())
    if run.started_at is None:
        for command in map(command_of, await connection.fetch(sql.OPEN_COMMANDS, [run.id])):
            if command.kind == "start":
                after = carry(after, decide(run, command, now, facts).events, now, happened)
                verdicts.append(verdict(command.id, None))
    carry(after, (RunParked(step_index=after.step_index, error_code=COMMITS_LOST, message=message),), now, happened)
    return record(run, happened, at=now, epoch=epoch, owner=token, verdicts=verdicts)


def _token() -> str:
    """An owner that no node is called, for the moment of a transaction."""
    return f"quarantine/{secrets.token_urlsafe(6)}"
