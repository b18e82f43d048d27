"""Templates: stored, listed, renewed and archived, never run from here. Used by ``api``.

A workflow is kept as it stands, with the number of its version; runs keep the snapshot that they were started with.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

from daemon.auth.caller import Origin
from daemon.store.audit import Deed, note
from daemon.store.once import Once, writing
from daemon.store.pool import Connection, Pool, reading

_ADD = """
INSERT INTO workflows (id, user_id, title, description, spec) VALUES ($1, $2, $3, $4, $5::text::json) RETURNING *
"""
_RENEW = """
UPDATE workflows SET title = $3, description = $4, spec = $5::text::json, version = version + 1, updated_at = now()
WHERE id = $1 AND user_id = $2 AND archived_at IS NULL AND ($6::integer IS NULL OR version = $6) RETURNING *
"""
_MADE = "INSERT INTO workflow_makers (workflow_id, version, token_maker) VALUES ($1, $2, $3)"
_ARCHIVE = """
UPDATE workflows SET archived_at = coalesce(archived_at, now()),
    updated_at = CASE WHEN archived_at IS NULL THEN now() ELSE updated_at END
WHERE id = $1 AND user_id = $2 RETURNING *, archived_at = now() AS newly
"""
_LIST = """
SELECT id, title, description, version, archived_at, created_at, updated_at,
    json_array_length(spec -> 'steps') AS step_count
FROM workflows WHERE user_id = $1 AND (archived_at IS NULL OR $2)
    AND ($3::text IS NULL OR strpos(lower(title), lower($3)) > 0)
    AND ($4::timestamptz IS NULL OR (created_at, id) < ($4, $5::uuid))
ORDER BY created_at DESC, id DESC LIMIT $6
"""


class Place(NamedTuple):
    """Where a page of a list ends: every list is newest first, by these two."""

    created_at: datetime
    id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One template; ``spec`` is its JSON text as stored."""

    id: UUID
    user_id: str
    title: str
    description: str | None
    spec: str
    version: int
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowItem:
    """A template in a list."""

    id: UUID
    title: str
    description: str | None
    version: int
    step_count: int
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime


class Workflows:
    """The table ``workflows``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(
        self,
        *,
        workflow_id: UUID,
        user_id: str,
        title: str,
        description: str | None,
        spec: str,
        origin: Origin,
        token_maker: str | None = None,
        once: Once | None = None,
    ) -> Workflow:
        """Store a template; ``token_maker``: who made the service token that it is stored with, if one is.

        Raises Repeated and KeyReused, as ``once.writing``.
        """
        async with writing(self._pool, once) as connection, connection.transaction():
            row = await connection.fetchrow(_ADD, workflow_id, user_id, title, description, spec)
            assert row is not None  # noqa: S101 - RETURNING of a plain INSERT answers its row
            workflow = _workflow(row)
            await _keep_maker(connection, workflow, token_maker)
            await note(connection, origin, _deed("workflow.created", workflow))
        return workflow

    async def get(self, workflow_id: UUID, *, user_id: str) -> Workflow | None:
        """A template of this user, archived or not; None when there is none (another's is none)."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(
                "SELECT * FROM workflows WHERE id = $1 AND user_id = $2", workflow_id, user_id
            )
        return _workflow(row) if row is not None else None

    async def renew(
        self,
        workflow_id: UUID,
        *,
        user_id: str,
        title: str,
        description: str | None,
        spec: str,
        version: int | None,
        origin: Origin,
        token_maker: str | None = None,
    ) -> Workflow | None:
        """Put the next version in the place of this one; None when there is none, it is archived or not ``version``."""
        async with reading(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(_RENEW, workflow_id, user_id, title, description, spec, version)
            if row is None:
                return None
            workflow = _workflow(row)
            await _keep_maker(connection, workflow, token_maker)
            await note(connection, origin, _deed("workflow.renewed", workflow))
        return workflow

    async def archive(self, workflow_id: UUID, *, user_id: str, origin: Origin) -> Workflow | None:
        """From now on it starts nothing; runs that there are go on. None when there is none."""
        async with reading(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(_ARCHIVE, workflow_id, user_id)
            if row is None:
                return None
            said = dict(row)
            newly, workflow = said.pop("newly"), Workflow(**said)
            if newly:  # archived again it is the same, and nothing to tell of
                await note(connection, origin, _deed("workflow.archived", workflow))
        return workflow

    async def listed(
        self, *, user_id: str, archived: bool, title_has: str | None, after: Place | None, limit: int
    ) -> list[WorkflowItem]:
        """The user's templates, newest first; ``archived``: those too."""
        place = after or (None, None)
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_LIST, user_id, archived, title_has, *place, limit)
        return [WorkflowItem(**dict(row)) for row in rows]


async def _keep_maker(connection: Connection, workflow: Workflow, token_maker: str | None) -> None:
    if token_maker is not None:
        await connection.execute(_MADE, workflow.id, workflow.version, token_maker)


def _deed(action: str, workflow: Workflow) -> Deed:
    """Its line of the audit."""
    told = {"title": workflow.title, "version": workflow.version}
    return Deed(action=action, owner=workflow.user_id, target=str(workflow.id), detail=told)


def _workflow(row: asyncpg.Record) -> Workflow:
    return Workflow(**dict(row))
