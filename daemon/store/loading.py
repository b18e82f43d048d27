"""Runs as their rows tell them, ready for the machine: row, snapshot, steps and the newest attempts. For this room."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import asyncpg
import orjson
from msgspec.structs import replace

from daemon.machine.commands import Command, CommandId, Epoch, Mark, RunId, Who
from daemon.machine.record import revision_of
from daemon.machine.spec import WorkflowSpec
from daemon.machine.state import PAST_KEPT, Attempt, Run, StepState, new_run
from daemon.store import sql
from daemon.store.pool import Connection
from daemon.telemetry import log


async def load(
    connection: Connection, rows: Sequence[asyncpg.Record]
) -> tuple[list[tuple[Run, Epoch]], list[asyncpg.Record]]:
    """The runs of claimed rows with their epochs; and the rows that cannot be read (damaged, or of a newer release)."""
    moved = [row["id"] for row in rows if row["last_seq"]]  # a run without events has no steps and attempts yet
    found = await connection.fetch(sql.LOAD, moved, PAST_KEPT + 1) if moved else ()
    kept = {row["id"]: (row["steps"], row["attempts"], row["approval"]) for row in found}
    runs: list[tuple[Run, Epoch]] = []
    unreadable: list[asyncpg.Record] = []
    for row in rows:
        run_id = RunId(row["id"])
        try:
            run = _restore(row, *kept.get(run_id, ((), (), None)))
        except Exception:  # noqa: BLE001 - whatever is wrong with one run must not stop its neighbours
            log.exception("a run cannot be read", run_id=str(run_id))
            unreadable.append(row)
        else:
            runs.append((run, Epoch(row["epoch"])))
    return runs, unreadable


@lru_cache(maxsize=1024)
def _spec(snapshot: str) -> WorkflowSpec:
    """Runs of one workflow share one spec in memory: snapshots are equal to the letter."""
    return WorkflowSpec.model_validate(orjson.loads(snapshot))


def _restore(row: asyncpg.Record, steps: Sequence[Any], attempts: Sequence[Any], approval: Sequence[Any] | None) -> Run:
    if row["log_seq"] != row["last_seq"]:  # whoever knew no better could decide anew what the log tells already
        raise ValueError("its log has pages that its rows could not take")
    principal = orjson.loads(row["principal"]) if row["principal"] is not None else {}
    fresh = new_run(
        run_id=RunId(row["id"]),
        workflow_id=row["workflow_id"],
        user_id=row["user_id"],
        nonce=row["nonce"],
        spec=_spec(row["snapshot"]),
        groups=tuple(principal.get("groups", ())),
        admin=principal.get("admin", False),
        token_maker=principal.get("token_maker"),
        spec_maker=principal.get("spec_maker"),
    )
    states = list(fresh.steps)
    for index, *step in steps:
        states[index] = StepState(**dict(zip(StepState.__struct_fields__, step, strict=True)))
    known = [_attempt(*one) for one in attempts]
    if any(not 0 <= one.step_index < len(states) for one in known):  # what it owes could not even be asked
        raise ValueError("there is an attempt of a step that the run does not have")
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
        revision=revision_of(approval) if approval is not None else None,
    )


def _attempt(*row: Any) -> Attempt:
    *fields, term, number = row
    mark = Mark(term, number) if term is not None else None
    return Attempt(**dict(zip(Attempt.__struct_fields__, (*fields, mark), strict=True)))


def command_of(row: asyncpg.Record) -> Command:
    """A row of OPEN_COMMANDS."""
    payload: dict[str, Any] = orjson.loads(row["payload"])
    origin: dict[str, Any] = orjson.loads(row["origin"] or "{}")
    return Command(
        id=CommandId(row["id"]),
        kind=row["kind"],
        seen_seq=row["seen_seq"],
        issued_by=row["issued_by"],
        step_id=payload.get("step_id"),
        confirm=payload.get("confirm"),
        reason=payload.get("reason"),
        note=payload.get("note"),
        digest=payload.get("digest"),
        comment=payload.get("comment"),
        arguments=orjson.dumps(payload["arguments"]).decode() if "arguments" in payload else None,
        at=row["at"],
        who=Who(
            roles=tuple(origin.get("roles", ())),
            groups=tuple(origin.get("groups", ())),
            via=origin.get("via"),
            address=origin.get("address"),
            client=origin.get("client"),
        ),
    )
