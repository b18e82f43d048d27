"""Templates: stored, read, never run from here. Used by ``api``."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from daemon.store.pool import Pool, reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One template; ``spec`` is its JSON text as stored."""

    id: UUID
    user_id: str
    title: str
    description: str | None
    spec: str
    created_at: datetime
    updated_at: datetime


class Workflows:
    """The table ``workflows``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, *, workflow_id: UUID, user_id: str, title: str, description: str | None, spec: str) -> Workflow:
        """Store a template."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(
                "INSERT INTO workflows (id, user_id, title, description, spec) VALUES ($1, $2, $3, $4, $5::text::json)"
                " RETURNING *",
                workflow_id,
                user_id,
                title,
                description,
                spec,
            )
        assert row is not None  # noqa: S101 - RETURNING of a plain INSERT answers its row
        return _workflow(row)

    async def get(self, workflow_id: UUID, *, user_id: str) -> Workflow | None:
        """A template of this user; None when there is none (another's is none)."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(
                "SELECT * FROM workflows WHERE id = $1 AND user_id = $2", workflow_id, user_id
            )
        return _workflow(row) if row is not None else None


def _workflow(row: asyncpg.Record) -> Workflow:
    return Workflow(
        id=row["id"],
        user_id=row["user_id"],
        title=row["title"],
        description=row["description"],
        spec=row["spec"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
