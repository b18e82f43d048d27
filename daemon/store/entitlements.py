"""What one caller may do with agents that they name, as Postgres has it at that moment. Used by ``api``.

Asked when a workflow is saved or a list of tools is read. Only the grants that mean the caller are read. What they mean
is decided in ``auth/access``; a run's own calls are decided by the runner, before each.
"""

from __future__ import annotations

from collections.abc import Collection

import asyncpg
import orjson

from daemon.auth.access import Agent, Grant, Policy
from daemon.store.pool import Connection, Pool, reading

_GRANTS = """
(
    SELECT json_agg(json_build_object('subject', subject, 'permission', permission, 'tools', tools,
        'expires_ms', floor(extract(epoch FROM expires_at) * 1000)::bigint))
    FROM agent_grants g WHERE g.agent_id = a.agent_id AND g.subject = ANY({}::text[])
) AS grants
"""
_OF = f"""
SELECT a.agent_id, b.owner, {_GRANTS.format("$2")}
FROM unnest($1::text[]) AS a (agent_id) LEFT JOIN agent_bindings b ON b.agent_id = a.agent_id
"""  # noqa: S608 - nothing of it is input
_POLICIES = "SELECT agents, tools, risk, writes, open_world, idempotent, requires_approval, denied FROM tool_policies"


class Entitlements:
    """Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def of(self, agent_ids: Collection[str], subjects: Collection[str]) -> dict[str, Agent]:
        """Each of these agents, with its owner, if any, and the grants to these subjects."""
        async with reading(self._pool) as connection:
            return await entitlements(connection, agent_ids, subjects)

    async def policies(self) -> list[Policy]:
        """Every tool policy."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_POLICIES)
        return [Policy(**dict(row)) for row in rows]


async def entitlements(
    connection: Connection, agent_ids: Collection[str], subjects: Collection[str]
) -> dict[str, Agent]:
    """As ``Entitlements.of``, within a transaction of the caller's."""
    rows = await connection.fetch(_OF, sorted(set(agent_ids)), sorted(subjects))
    return {row["agent_id"]: _agent(row) for row in rows}


def _agent(row: asyncpg.Record) -> Agent:
    told = orjson.loads(row["grants"] or b"[]")
    grants = tuple(Grant(**grant | {"tools": tuple(grant["tools"])}) for grant in told)
    return Agent(agent_id=row["agent_id"], owner=row["owner"], grants=grants)
