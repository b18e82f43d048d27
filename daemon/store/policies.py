"""Tool policies: what admins say about tools, by patterns over agents and tools. Used by ``api``.

Each change is one transaction with its line in the audit, and raises the version of authority by a trigger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from daemon.auth.caller import Origin
from daemon.errors import Conflict
from daemon.store.audit import Deed, note
from daemon.store.pool import Connection, Pool, reading

MOST = 1000

SAYS = ("risk", "writes", "open_world", "idempotent", "requires_approval", "denied")
"""What a policy may say; None says nothing."""
_COLUMNS = f"id, agents, tools, {', '.join(SAYS)}, note, set_by, set_at"
_LIST = f'SELECT {_COLUMNS} FROM tool_policies ORDER BY agents COLLATE "C", tools COLLATE "C"'  # noqa: S608 - no input
_ADD = f"""
INSERT INTO tool_policies (id, agents, tools, {", ".join(SAYS)}, note, set_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (agents, tools) DO NOTHING RETURNING {_COLUMNS}
"""  # noqa: S608 - nothing of it is input
_SET = f"""
UPDATE tool_policies SET agents = $2, tools = $3, risk = $4, writes = $5, open_world = $6, idempotent = $7,
    requires_approval = $8, denied = $9, note = $10, set_by = $11, set_at = now()
WHERE id = $1 RETURNING {_COLUMNS}
"""  # noqa: S608 - nothing of it is input
_OTHER = """
SELECT true FROM tool_policies WHERE agents = $1 AND tools = $2 AND id <> $3
    AND EXISTS (SELECT FROM tool_policies WHERE id = $3)
"""
"""Whether another policy has these patterns; of one that is not there, nothing is asked."""
_DELETE = f"DELETE FROM tool_policies WHERE id = $1 RETURNING {_COLUMNS}"  # noqa: S608 - nothing of it is input
_ONE_AFTER_THE_OTHER = "SELECT pg_advisory_xact_lock(hashtext('tool_policies'))"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPolicy:
    """One policy. ``agents`` and ``tools`` are patterns."""

    id: UUID
    agents: str
    tools: str
    risk: str | None
    writes: bool | None
    open_world: bool | None
    idempotent: bool | None
    requires_approval: bool | None
    denied: bool | None
    note: str | None
    set_by: str
    set_at: datetime


class Policies:
    """The table ``tool_policies``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def all(self) -> list[KeptPolicy]:
        """Every policy, by its patterns."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_LIST)
        return [_policy(row) for row in rows]

    async def add(self, policy_id: UUID, said: Mapping[str, Any], origin: Origin) -> KeptPolicy:
        """A new one; ``said``: agents, tools, note and SAYS. Raises Conflict for patterns that have one already."""
        async with reading(self._pool) as connection, connection.transaction():
            await connection.execute(_ONE_AFTER_THE_OTHER)
            if await connection.fetchval("SELECT count(*) FROM tool_policies") >= MOST:
                raise Conflict(f"There are {MOST} policies: use patterns.", code="too_many")
            row = await connection.fetchrow(_ADD, *_values(policy_id, said, origin))
            if row is None:
                raise _twice(said)
            return await _noted(connection, origin, "policy.added", row)

    async def replace(self, policy_id: UUID, said: Mapping[str, Any], origin: Origin) -> KeptPolicy | None:
        """Put this in the place of that one; None when there is none. Raises Conflict as ``add``."""
        async with reading(self._pool) as connection, connection.transaction():
            await connection.execute(_ONE_AFTER_THE_OTHER)
            if await connection.fetchval(_OTHER, said["agents"], said["tools"], policy_id):
                raise _twice(said)
            row = await connection.fetchrow(_SET, *_values(policy_id, said, origin))
            return await _noted(connection, origin, "policy.changed", row) if row is not None else None

    async def delete(self, policy_id: UUID, origin: Origin) -> KeptPolicy | None:
        """It says nothing any more; answers what it said, None when there is none."""
        async with reading(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(_DELETE, policy_id)
            return await _noted(connection, origin, "policy.deleted", row) if row is not None else None


def _values(policy_id: UUID, said: Mapping[str, Any], origin: Origin) -> tuple[object, ...]:
    return (policy_id, said["agents"], said["tools"], *(said[name] for name in SAYS), said["note"], origin.actor)


def _twice(said: Mapping[str, Any]) -> Conflict:
    return Conflict(
        f"There is a policy over agents {said['agents']!r} and tools {said['tools']!r} already: change that one.",
        code="policy_exists",
    )


async def _noted(connection: Connection, origin: Origin, action: str, row: asyncpg.Record) -> KeptPolicy:
    """With its line in the audit."""
    policy = _policy(row)
    told = {name: row[name] for name in ("agents", "tools", *SAYS) if row[name] is not None}
    await note(connection, origin, Deed(action=action, target=str(policy.id), comment=policy.note, detail=told))
    return policy


def _policy(row: asyncpg.Record) -> KeptPolicy:
    return KeptPolicy(**dict(row))
