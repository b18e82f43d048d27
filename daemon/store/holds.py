"""Holds: the emergency stop. While one stands, no call leaves for what it names. Used by ``api``.

One stands for each scope and target at a time; released ones stay as evidence. Each change is one transaction with its
line in the audit, and raises the version of authority by a trigger.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

import asyncpg

from daemon.auth.caller import Origin
from daemon.errors import NotFound
from daemon.store.audit import Deed, note
from daemon.store.pool import Connection, Pool, reading
from daemon.store.workflows import Place

Scope = Literal["everything", "agent", "user"]

_COLUMNS = "id, scope, target, reason, held_by, held_at, by_admin, released_by, released_at"
_HOLD = f"""
INSERT INTO holds AS h (id, scope, target, reason, held_by, by_admin) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (scope, target) WHERE released_at IS NULL
    DO UPDATE SET by_admin = true, held_by = excluded.held_by, reason = excluded.reason
    WHERE excluded.by_admin AND NOT h.by_admin
RETURNING {_COLUMNS}
"""  # noqa: S608 - nothing of it is input
_STANDING = f"SELECT {_COLUMNS} FROM holds WHERE scope = $1 AND target = $2 AND released_at IS NULL"  # noqa: S608 - no input
_ONE = f"SELECT {_COLUMNS} FROM holds WHERE id = $1"  # noqa: S608 - nothing of it is input
_RELEASE = f"""
UPDATE holds SET released_by = $2, released_at = now() WHERE id = $1 AND released_at IS NULL AND (NOT by_admin OR $3)
RETURNING {_COLUMNS}
"""  # noqa: S608 - nothing of it is input
_LIST = f"""
SELECT {_COLUMNS} FROM holds h
WHERE (NOT $1 OR released_at IS NULL)
    AND ($2 OR scope = 'everything' OR scope = 'user' AND target = $3 OR scope = 'agent' AND (
        EXISTS (SELECT FROM agent_bindings b WHERE b.agent_id = h.target AND b.owner = $3)
        OR EXISTS (
            SELECT FROM agent_grants g WHERE g.agent_id = h.target AND g.subject = ANY($4::text[])
                AND (g.expires_at IS NULL OR g.expires_at > now()))))
    AND ($5::timestamptz IS NULL OR (held_at, id) < ($5, $6::uuid))
ORDER BY held_at DESC, id DESC LIMIT $7
"""  # noqa: S608 - nothing of it is input
_TARGET = "SELECT target FROM holds WHERE id = $1 AND scope = 'agent'"
_OWNER = "SELECT owner FROM agent_bindings WHERE agent_id = $1"
_LOCK = f"{_OWNER} FOR UPDATE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """One hold; ``target`` is empty for everything. ``by_admin``: only admins release it."""

    id: UUID
    scope: Scope
    target: str
    reason: str
    held_by: str
    held_at: datetime
    by_admin: bool
    released_by: str | None
    released_at: datetime | None


class Holds:
    """The table ``holds``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def hold(
        self, *, hold_id: UUID, scope: Scope, target: str, reason: str, by_admin: bool, origin: Origin
    ) -> Hold:
        """Hold it. What is held already stays so, by the hold that stands; an admin's word makes it an admin's.

        Who is none must own the agent, whatever was seen: raises NotFound where it is another's by now.
        """
        async with reading(self._pool) as connection, connection.transaction():
            if not by_admin:
                await _owned(connection, target, origin.actor)
            while True:
                stands = await connection.fetchrow(_STANDING, scope, target)
                if stands is not None and (stands["by_admin"] or not by_admin):
                    return _hold(stands)
                row = await connection.fetchrow(_HOLD, hold_id, scope, target, reason, origin.actor, by_admin)
                if row is not None:  # else it was held between the two statements
                    return await _noted(connection, origin, "hold.set", row)

    async def get(self, hold_id: UUID) -> Hold | None:
        """One hold, standing or released."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(_ONE, hold_id)
        return _hold(row) if row is not None else None

    async def release(self, hold_id: UUID, origin: Origin, *, as_admin: bool) -> Hold | None:
        """Let what it held go on; one that is released already is answered as it is. None when there is none.

        An admin's hold is left as it stands unless ``as_admin``. Raises NotFound as ``hold``.
        """
        async with reading(self._pool) as connection, connection.transaction():
            if not as_admin:
                await _owned(connection, await connection.fetchval(_TARGET, hold_id), origin.actor)
            row = await connection.fetchrow(_RELEASE, hold_id, origin.actor, as_admin)
            if row is not None:
                return await _noted(connection, origin, "hold.released", row)
            found = await connection.fetchrow(_ONE, hold_id)
        return _hold(found) if found is not None else None

    async def listed(
        self,
        *,
        user_id: str,
        subjects: Collection[str],
        everything: bool,
        standing: bool,
        after: Place | None,
        limit: int,
    ) -> list[Hold]:
        """Those that concern them, newest first: what stops all, them, or an agent they see. ``everything``: all."""
        place = after or (None, None)
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_LIST, standing, everything, user_id, sorted(subjects), *place, limit)
        return [_hold(row) for row in rows]


async def _owned(connection: Connection, agent_id: str | None, user_id: str) -> None:
    """The agent is theirs, until this transaction ends. Raises NotFound."""
    if await connection.fetchval(_LOCK, agent_id) != user_id:
        raise NotFound("There is no such agent, or it is not yours any more.")


async def _noted(connection: Connection, origin: Origin, action: str, row: asyncpg.Record) -> Hold:
    """With its line in the audit."""
    hold = _hold(row)
    agent_id = hold.target if hold.scope == "agent" else None
    owner = hold.target if hold.scope == "user" else None
    if agent_id is not None:
        owner = await connection.fetchval(_OWNER, agent_id)
    detail = {"scope": hold.scope, "target": hold.target, "by_admin": hold.by_admin}
    deed = Deed(action=action, agent_id=agent_id, owner=owner, target=str(hold.id), comment=hold.reason, detail=detail)
    await note(connection, origin, deed)
    return hold


def _hold(row: asyncpg.Record) -> Hold:
    return Hold(**dict(row))
