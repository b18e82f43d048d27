"""Runs as their rows tell them, ready for the machine: row, snapshot, steps and the newest attempts. For this room."""

from __future__ import annotations

from collections.abc import Sequence
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
from daemon.store.pool import Connection
from daemon.telemetry import log


async def load(
    connection: Connection, rows: Sequence[asyncpg.Record]
) -> tuple[list[tuple[Run, Epoch]], list[asyncpg.Record]]:
    """The runs of claimed rows with their epochs; and the rows that cannot be read (damaged, or of a newer release)."""
    ids = [row["id"] for row in rows]
    specs = {row["run_id"]: row["snapshot"] for row in await connection.fetch(sql.LOAD_SPECS, ids)}
    steps = _grouped(await connection.fetch(sql.LOAD_STEPS, ids))
    attempts = _grouped(await connection.fetch(sql.LOAD_ATTEMPTS, ids, PAST_KEPT + 1))
    runs: list[tuple[Run, Epoch]] = []
    unreadable: list[asyncpg.Record] = []
    for row in rows:
        run_id = RunId(row["id"])
        try:
            run = _restore(row, specs[run_id], steps.get(run_id, ()), attempts.get(run_id, ()))
        except Exception:  # noqa: BLE001 - whatever is wrong with one run must not stop its neighbours
            log.exception("a run cannot be read", run_id=str(run_id))
            unreadable.append(row)
        else:
            runs.append((run, Epoch(row["epoch"])))
    return runs, unreadable


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


def command_of(row: asyncpg.Record) -> Command:
    """A row of OPEN_COMMANDS."""
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
