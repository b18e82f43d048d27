"""Taking runs and letting them go: the epoch rises at each claim, ``owner`` says which activation may write.

Used by ``runtime/host`` through ``ports.Claims`` and by ``runtime/sweep``. A claim answers the whole run, ready for the
machine: row, snapshot, steps and its newest attempts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from msgspec.structs import replace

from daemon.machine.commands import Command, CommandId, Epoch, Mark, ReqId, RunId
from daemon.machine.spec import WorkflowSpec
from daemon.machine.state import PAST_KEPT, Attempt, Run, StepState, new_run
from daemon.store import sql
from daemon.store.pool import Pool, reading
from daemon.telemetry import log

UNREADABLE_AGAIN_S = 30
"""After this a run that could not be read is offered again; a node of another release may understand it."""


class Claims:
    """The claims, releases and looks of one node."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def claim(self, wanted: Mapping[RunId, str]) -> tuple[list[tuple[Run, Epoch]], int]:
        """Claim each run for its owner token; answers the runs that exist with their new epochs, and Postgres time.

        A run whose rows cannot be read (damaged, or of a newer release) is let go for ``UNREADABLE_AGAIN_S`` and left
        out. Raises StoreUnavailable. When the reply is lost the claim may have happened: such a run is an orphan,
        and the sweep finds it.
        """
        async with reading(self._pool) as connection:
            rows = await connection.fetch(sql.CLAIM, list(wanted), list(wanted.values()))
            if not rows:
                return [], 0
            ids = [row["id"] for row in rows]
            specs = {row["run_id"]: row["snapshot"] for row in await connection.fetch(sql.LOAD_SPECS, ids)}
            steps = _grouped(await connection.fetch(sql.LOAD_STEPS, ids))
            attempts = _grouped(await connection.fetch(sql.LOAD_ATTEMPTS, ids, PAST_KEPT + 1))
        runs: list[tuple[Run, Epoch]] = []
        unreadable: list[tuple[RunId, Epoch, str, int | None]] = []
        for row in rows:
            run_id, epoch = RunId(row["id"]), Epoch(row["epoch"])
            try:
                run = _restore(row, specs[run_id], steps.get(run_id, ()), attempts.get(run_id, ()))
            except Exception:  # noqa: BLE001 - whatever is wrong with one run must not stop its neighbours
                log.exception("a run cannot be read", run_id=str(run_id))
                unreadable.append((run_id, epoch, row["owner"], row["now_ms"] + UNREADABLE_AGAIN_S * 1000))
            else:
                runs.append((run, epoch))
        if unreadable:
            await self.release(unreadable)
        return runs, max(row["now_ms"] for row in rows)

    async def release(self, given: Sequence[tuple[RunId, Epoch, str, int | None]]) -> set[RunId]:
        """Clear ``owner`` and store ``wake_at`` (ms) of (run, epoch, owner, wake_at), fenced; answers the moved."""
        columns = [list(column) for column in zip(*given, strict=True)] if given else [[], [], [], []]
        async with reading(self._pool) as connection:
            return {RunId(row["id"]) for row in await connection.fetch(sql.RELEASE, *columns)}

    async def still_held(self, held: Sequence[tuple[RunId, str, Epoch]]) -> set[RunId]:
        """Those of the runs that nobody has claimed since (owner and epoch stand)."""
        columns = ([run_id for run_id, _, _ in held], [epoch for _, _, epoch in held], [owner for _, owner, _ in held])
        async with reading(self._pool) as connection:
            return {RunId(row["id"]) for row in await connection.fetch(sql.STILL_HELD, *columns)}

    async def open_commands(self, run_ids: Sequence[RunId]) -> dict[RunId, list[Command]]:
        """The commands without a verdict, oldest first."""
        found: dict[RunId, list[Command]] = {}
        async with reading(self._pool) as connection:
            for row in await connection.fetch(sql.OPEN_COMMANDS, list(run_ids)):
                found.setdefault(RunId(row["run_id"]), []).append(_command(row))
        return found

    async def due(self, limit: int) -> list[RunId]:
        """Passive runs whose ``wake_at`` has come, oldest first."""
        async with reading(self._pool) as connection:
            return [RunId(row["id"]) for row in await connection.fetch(sql.DUE, limit)]

    async def wake_waiting(self) -> None:
        """Make every passive run due that waits for an answer or an hour; those that wait for people have no hour."""
        async with reading(self._pool) as connection:
            await connection.execute(sql.WAKE_WAITING)

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
        """Make the log's partitions of this month and ``months_ahead`` more; answers how many were new."""
        async with reading(self._pool) as connection:
            return int(await connection.fetchval("SELECT ensure_event_partitions($1)", months_ahead))


def _grouped(rows: Sequence[asyncpg.Record]) -> dict[UUID, list[asyncpg.Record]]:
    groups: dict[UUID, list[asyncpg.Record]] = {}
    for row in rows:
        groups.setdefault(row["run_id"], []).append(row)
    return groups


@lru_cache(maxsize=1024)
def _spec(snapshot: str) -> WorkflowSpec:
    """Runs of one workflow share one spec in memory: snapshots are equal to the letter."""
    return WorkflowSpec.model_validate(orjson.loads(snapshot))


def _restore(
    row: asyncpg.Record, snapshot: str, steps: Sequence[asyncpg.Record], attempts: Sequence[asyncpg.Record]
) -> Run:
    fresh = new_run(
        run_id=RunId(row["id"]),
        workflow_id=row["workflow_id"],
        user_id=row["user_id"],
        nonce=row["nonce"],
        spec=_spec(snapshot),
    )
    states = list(fresh.steps)
    for step in steps:
        states[step["step_index"]] = StepState(
            status=step["status"],
            attempts=step["attempts"],
            approved_by=step["approved_by"],
            approved_at=step["approved_at_ms"],
            decided_by=step["decided_by"],
            decided_at=step["decided_at_ms"],
            note=step["note"],
        )
    known = [_attempt(one) for one in attempts]
    return replace(
        fresh,
        steps=tuple(states),
        status=row["status"],
        paused_reason=row["paused_reason"],
        paused_seq=row["paused_seq"],
        step_index=row["current_step_index"],
        last_seq=row["last_seq"],
        last_at=row["last_ms"],
        started_at=row["started_ms"],
        finished_at=row["finished_ms"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        attempt=known[0] if known else None,
        past=tuple(known[1:]),
    )


def _attempt(row: asyncpg.Record) -> Attempt:
    return Attempt(
        step_index=row["step_index"],
        index=row["attempt"],
        req_id=ReqId(row["req_id"]),
        state=row["state"],
        epoch=Epoch(row["epoch"]),
        first_intended_at=row["first_intended_at_ms"],
        intended_at=row["intended_at_ms"],
        ack_by=row["ack_by_ms"],
        deadline_at=row["deadline_at_ms"],
        acked_at=row["acked_at_ms"],
        canceling=row["canceling"],
        cancel_until=row["cancel_until_ms"],
        retry_at=row["retry_at_ms"],
        tries=row["tries"],
        unsent_reason=row["unsent_reason"],
        unsent_detail=row["unsent_detail"],
        ended_at=row["ended_at_ms"],
        answered=row["answered"],
        log_bytes=row["log_bytes"],
        mark=Mark(row["mark_term"], row["mark_number"]) if row["mark_term"] is not None else None,
    )


def _command(row: asyncpg.Record) -> Command:
    payload: dict[str, Any] = orjson.loads(row["payload"])
    return Command(
        id=CommandId(row["id"]),
        kind=row["kind"],
        seen_seq=row["seen_seq"],
        issued_by=row["issued_by"],
        step_id=payload.get("step_id"),
        confirm=payload.get("confirm"),
        reason=payload.get("reason"),
        note=payload.get("note"),
    )
