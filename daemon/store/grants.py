"""Grants: what an agent's owner lets others do with it. Used by ``api``; the runner reads them by ``authority``.

Each change is one transaction with its line in the audit, and raises the version of authority by a trigger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from daemon.auth.caller import Origin
from daemon.errors import Conflict
from daemon.store.audit import Deed, note
from daemon.store.pool import Pool, reading

MOST = 100
"""Grants of one agent."""

_COLUMNS = "id, agent_id, subject, permission, tools, expires_at, granted_by, granted_at"
_LIST = f"SELECT {_COLUMNS} FROM agent_grants WHERE agent_id = $1 ORDER BY id"  # noqa: S608 - nothing of it is input
_SAME = f"""
SELECT {_COLUMNS} FROM agent_grants
WHERE agent_id = $1 AND subject = $2 AND permission = $3 AND tools = $4::text[]
    AND expires_at IS NOT DISTINCT FROM $5::timestamptz
"""  # noqa: S608 - nothing of it is input
_ADD = f"""
INSERT INTO agent_grants (id, agent_id, subject, permission, tools, expires_at, granted_by)
VALUES ($1, $2, $3, $4, $5::text[], $6, $7) RETURNING {_COLUMNS}
"""  # noqa: S608 - nothing of it is input
_LOCK = "SELECT owner FROM agent_bindings WHERE agent_id = $1 FOR UPDATE"
_REVOKE = f"DELETE FROM agent_grants WHERE agent_id = $1 AND id = $2 RETURNING {_COLUMNS}"  # noqa: S608 - no input


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptGrant:
    """One grant; ``tools`` are patterns over tool names."""

    id: UUID
    agent_id: str
    subject: str
    permission: str
    tools: Sequence[str]
    expires_at: datetime | None
    granted_by: str
    granted_at: datetime


class Grants:
    """The table ``agent_grants``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def of(self, agent_id: str) -> list[KeptGrant]:
        """Every grant of an agent, oldest first, expired ones too."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_LIST, agent_id)
        return [_grant(row) for row in rows]

    async def add(
        self,
        *,
        grant_id: UUID,
        agent_id: str,
        subject: str,
        permission: str,
        tools: Sequence[str],
        expires_at: datetime | None,
        origin: Origin,
        owned_by: str | None,
    ) -> KeptGrant:
        """Let them. The same grant twice is the first one. ``owned_by``: whose the agent must be, whatever was seen.

        Raises Conflict where the agent is nobody's, or another's by now, or has too many grants.
        """
        async with reading(self._pool) as connection, connection.transaction():
            owner = await connection.fetchval(_LOCK, agent_id)
            if owner is None:
                raise Conflict("The agent belongs to nobody: an admin must bind it first.", code="agent_unbound")
            if owned_by is not None and owner != owned_by:
                raise Conflict("The agent has another owner by now.", code="agent_taken")
            same = await connection.fetchrow(_SAME, agent_id, subject, permission, list(tools), expires_at)
            if same is not None:
                return _grant(same)
            if await connection.fetchval("SELECT count(*) FROM agent_grants WHERE agent_id = $1", agent_id) >= MOST:
                raise Conflict(f"The agent has {MOST} grants: revoke some, or grant to a group.", code="too_many")
            row = await connection.fetchrow(
                _ADD, grant_id, agent_id, subject, permission, list(tools), expires_at, origin.actor
            )
            told = {"subject": subject, "permission": permission, "tools": list(tools), "expires_at": expires_at}
            deed = Deed(action="grant.added", agent_id=agent_id, owner=owner, target=str(grant_id), detail=told)
            await note(connection, origin, deed)
        assert row is not None  # noqa: S101 - RETURNING of a plain INSERT answers its row
        return _grant(row)

    async def revoke(self, agent_id: str, grant_id: UUID, origin: Origin, *, owned_by: str | None) -> KeptGrant | None:
        """Take it back; answers what it was, None when there is none. Raises Conflict as ``add``."""
        async with reading(self._pool) as connection, connection.transaction():
            owner = await connection.fetchval(_LOCK, agent_id)
            if owned_by is not None and owner != owned_by:
                raise Conflict("The agent has another owner by now.", code="agent_taken")
            row = await connection.fetchrow(_REVOKE, agent_id, grant_id)
            if row is None:
                return None
            told = {name: row[name] for name in ("subject", "permission", "tools", "expires_at")}
            deed = Deed(action="grant.revoked", agent_id=agent_id, owner=owner, target=str(grant_id), detail=told)
            await note(connection, origin, deed)
            return _grant(row)


def _grant(row: asyncpg.Record) -> KeptGrant:
    return KeptGrant(**dict(row))
