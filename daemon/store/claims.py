"""Taking runs and letting them go: the epoch rises at each claim, ``owner`` says which activation may write.

Used by ``runtime/host`` through ``ports.Claims`` and by ``runtime/sweep``. A claim answers the whole run, ready for the
machine: row, snapshot, steps and its newest attempts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

import asyncpg

from daemon.machine.commands import Command, Epoch, RunId
from daemon.machine.record import Known
from daemon.machine.state import Run
from daemon.store import sql
from daemon.store.loading import command_of, load
from daemon.store.pool import Pool, plain, reading
from daemon.store.quarantine import park_lost
from daemon.telemetry import log

UNREADABLE_AGAIN_S = 30
"""After this a run that could not be read is offered again; a node of another release may understand it."""

FREE_TAKEOVERS = 2
"""A run is taken over so often without having got anywhere, before the next takeover has to wait."""
TAKEOVER_PAUSE_S = 4.0
TAKEOVER_PAUSE_MAX_S = 60.0
"""The wait, counted from the last takeover: 4 s, doubling up to a minute. A run that kills whoever carries it (say, by
what it needs of memory) must not fell one node after the other; and one that was only unlucky must not be parked."""


class Claims:
    """The claims and releases of one node, and what its sweep looks for."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(self, wanted: Mapping[RunId, str]) -> tuple[list[tuple[Run, Epoch]], int]:
        """Claim each run for its owner token; answers the runs that exist with their new epochs, and Postgres time.

        A run whose rows cannot be read (damaged, or of a newer release) is let go for ``UNREADABLE_AGAIN_S`` and left
        out; so is one that was taken over again and again and never got anywhere, until its pause is over. Raises
        StoreUnavailable. When the reply is lost the claim may have happened: such a run is an orphan, and the sweep
        finds it.
        """
        async with reading(self._pool) as connection:
            rows = await connection.fetch(
                sql.CLAIM, list(wanted), list(wanted.values()), FREE_TAKEOVERS, TAKEOVER_PAUSE_S, TAKEOVER_PAUSE_MAX_S
            )
            if not rows:
                return [], 0
            runs, unreadable = await load(connection, rows)
        if unreadable:
            again = [(row, row["now_ms"] + UNREADABLE_AGAIN_S * 1000) for row in unreadable]
            await self.release([(row["id"], row["epoch"], row["owner"], at, row["log_seq"]) for row, at in again])
        return runs, max(row["now_ms"] for row in rows)

    async def release(self, given: Sequence[tuple[RunId, Epoch, str, int | None, int]]) -> set[RunId]:
        """Clear ``owner`` and store ``wake_at`` (ms) of (run, epoch, owner, wake_at, last_seq), fenced.

        Answers those that moved.
        """
        columns = [list(column) for column in zip(*given, strict=True)] if given else [[], [], [], [], []]
        async with reading(self._pool) as connection:
            return {RunId(row["id"]) for row in await connection.fetch(sql.RELEASE, *columns)}

    async def park_lost(self, known: Sequence[Known]) -> set[RunId]:
        """Park those of the runs that the database is behind what their owner knew; see ``quarantine``."""
        async with reading(self._pool) as connection:
            return await park_lost(connection, known)

    async def still_held(self, held: Sequence[tuple[RunId, str, Epoch]]) -> set[RunId]:
        """Those of the runs that nobody has claimed since (owner and epoch stand)."""
        columns = ([run_id for run_id, _, _ in held], [epoch for _, _, epoch in held], [owner for _, owner, _ in held])
        async with reading(self._pool) as connection:
            return {RunId(row["id"]) for row in await connection.fetch(sql.STILL_HELD, *columns)}

    async def open_commands(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Command]]:
        """The commands without a verdict, oldest first. One that cannot be read is left out, and stays open."""
        found: dict[RunId, list[Command]] = {}
        async with reading(self._pool) as connection:
            rows = await connection.fetch(sql.OPEN_COMMANDS, list(run_ids))
        for row in rows:
            try:
                found.setdefault(RunId(row["run_id"]), []).append(command_of(row))
            except Exception:  # noqa: BLE001 - whatever is wrong with one command must not stop all others
                log.exception("a command cannot be read", run_id=str(row["run_id"]), command_id=str(row["id"]))
        return found

    async def wake_waiting(self, agents: Collection[str] | None = None) -> None:
        """Make every passive run due that waits for an answer or an hour; those that wait for people have no hour.

        With ``agents``: only those whose present step is one of theirs.
        """
        async with reading(self._pool) as connection:
            await connection.execute(sql.WAKE_WAITING, None if agents is None else list(agents))

    async def owned(self, after: UUID, limit: int) -> list[RunId]:
        """Runs with an owner, by id after ``after``: the sweep looks which of them have no lease."""
        async with reading(self._pool) as connection:
            return [RunId(row["id"]) for row in await connection.fetch(sql.OWNED, after, limit)]

    async def owning_nodes(self) -> list[str]:
        """The nodes that runs are owned by, dead ones included."""
        async with reading(self._pool) as connection:
            return [row[0] for row in await connection.fetch(sql.OWNING_NODES)]

    async def owned_by(self, nodes: Sequence[str], limit: int) -> list[RunId]:
        """Runs owned by these nodes, the longest quiet first."""
        async with reading(self._pool) as connection:
            return [RunId(row["id"]) for row in await connection.fetch(sql.OWNED_BY, list(nodes), limit)]

    async def commanded(self, older_than_s: float, limit: int) -> list[RunId]:
        """Runs with a command that has waited for a verdict longer than ``older_than_s``."""
        async with reading(self._pool) as connection:
            return [RunId(row["run_id"]) for row in await connection.fetch(sql.COMMANDED, older_than_s, limit)]

    async def ensure_partitions(self, months_ahead: int) -> int:
        """Make the log's partitions of this month and ``months_ahead`` more; answers how many were new.

        None is made while DEFAULT holds events of one of those months: of a run that was created where the clock was
        far ahead, or that has another id than a UUIDv7 (v0's). Until they are moved all goes to DEFAULT, which is
        slower and harms nobody; so no node may end over it.
        """
        try:
            async with reading(self._pool) as connection:
                return int(await connection.fetchval("SELECT ensure_event_partitions($1)", months_ahead))
        except asyncpg.CheckViolationError as fault:
            log.error(
                "the log gets no new partitions until the events of their months are moved out of DEFAULT",
                table="workflow_run_pages_default",
                fault=plain(fault),
            )
            return 0
