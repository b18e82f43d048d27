"""Commands: what people want of runs, a committed row before it is acknowledged. Used by ``api``; verdicts come from
the journal, with the transition that the command caused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from daemon.auth.caller import Caller, Origin
from daemon.machine.commands import CommandId, CommandKind, RunId
from daemon.store.audit import kept
from daemon.store.once import Once, forget, writing
from daemon.store.pool import Pool, reading

_ADD = """
INSERT INTO workflow_run_commands (id, run_id, kind, payload, seen_seq, issued_by, origin)
SELECT t.id, t.run_id, t.kind, t.payload::json, t.seen_seq, t.issued_by, t.origin::json
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[])
    AS t(id, run_id, kind, payload, seen_seq, issued_by, origin)
"""

_SAY = """
WITH run AS (
    SELECT id, status, paused_seq FROM workflow_runs
    WHERE id = $2 AND (user_id = $3 OR $10 OR cardinality($11::text[]) > 0 AND asked_to_decide(id, $11))
), said AS (
    INSERT INTO workflow_run_commands (id, run_id, kind, payload, seen_seq, issued_by, origin)
    SELECT $1, id, $4, $5::text::json, CASE WHEN $7 THEN paused_seq END, $8, $9::text::json
    FROM run WHERE status = ANY($6::text[])
)
SELECT status FROM run
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandRow:
    """A command and what became of it; ``verdict`` is None while undecided."""

    id: CommandId
    run_id: RunId
    kind: str
    created_at: datetime
    applied_seq: int | None
    verdict: str | None
    code: str | None
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCommand:
    """A person's word about one run, not yet written down."""

    id: CommandId
    run_id: RunId
    kind: CommandKind
    payload: dict[str, Any]
    seen_seq: int | None
    origin: Origin


class Commands:
    """The table ``workflow_run_commands``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, *commands: NewCommand, once: Once | None = None) -> None:
        """Write what people said down, all of it or nothing. On return it is on disk.

        Raises Repeated and KeyReused, as ``once.writing``.
        """
        rows = [
            (*(one.id, one.run_id, one.kind, orjson.dumps(one.payload).decode(), one.seen_seq), *_speaker(one.origin))
            for one in commands
        ]
        async with writing(self._pool, once) as connection:
            if rows:
                await connection.execute(_ADD, *(list(column) for column in zip(*rows, strict=True)))

    async def say(
        self,
        command_id: CommandId,
        kind: CommandKind,
        payload: dict[str, Any],
        *,
        run_id: UUID,
        by: Caller,
        origin: Origin,
        of: Collection[str],
        sees_pause: bool,
        asked: bool = False,
        once: Once | None = None,
    ) -> str | None:
        """A person's word (``origin``) about a run; answers its status, None when it is not theirs to drive.

        That is a run of their own, or any for an admin; ``asked``: also one of which they were asked about a call. On
        return it is on disk if the status is one ``of`` these. ``sees_pause``: it is about the pause that stands at
        this moment, and about no other. Raises Repeated and KeyReused, as ``once.writing``.
        """
        subjects = sorted(by.subjects) if asked else []
        said, speaker = orjson.dumps(payload).decode(), _speaker(origin)
        async with writing(self._pool, once) as connection:
            status: str | None = await connection.fetchval(
                _SAY, command_id, run_id, by.user_id, kind, said, list(of), sees_pause, *speaker, by.admin, subjects
            )
            if status not in of:
                await forget(connection, once)
        return status

    async def get(self, command_id: UUID, *, run_id: UUID) -> CommandRow | None:
        """A command of a run; None when there is none."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(
                "SELECT id, run_id, kind, created_at, applied_seq, verdict, code, message"
                " FROM workflow_run_commands WHERE id = $1 AND run_id = $2",
                command_id,
                run_id,
            )
        return CommandRow(**dict(row)) if row is not None else None

    async def decided(self, command_ids: Sequence[UUID]) -> list[CommandRow]:
        """Those of the commands that have their verdict."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(
                "SELECT id, run_id, kind, created_at, applied_seq, verdict, code, message"
                " FROM workflow_run_commands WHERE id = ANY($1::uuid[]) AND verdict IS NOT NULL",
                list(command_ids),
            )
        return [CommandRow(**dict(row)) for row in rows]


def _speaker(origin: Origin) -> tuple[str, str]:
    """``issued_by`` and ``origin`` of a command's row."""
    return origin.actor, kept(origin)
