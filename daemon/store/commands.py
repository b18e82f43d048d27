"""Commands: what people want of runs, a committed row before it is acknowledged. Used by ``api``; verdicts come from
the journal, with the transition that the command caused."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from daemon.machine.commands import CommandId, CommandKind, RunId
from daemon.store.pool import Pool, reading


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


class Commands:
    """The table ``workflow_run_commands``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(
        self,
        *,
        command_id: CommandId,
        run_id: RunId,
        kind: CommandKind,
        payload: dict[str, Any],
        seen_seq: int | None,
        issued_by: str,
    ) -> None:
        """Write the person's word down. On return it is on disk."""
        async with reading(self._pool) as connection:
            await connection.execute(
                "INSERT INTO workflow_run_commands (id, run_id, kind, payload, seen_seq, issued_by)"
                " VALUES ($1, $2, $3, $4::text::json, $5, $6)",
                command_id,
                run_id,
                kind,
                orjson.dumps(payload).decode(),
                seen_seq,
                issued_by,
            )

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
