"""What one caller may do with agents that they name, as Postgres has it at that moment. Used by ``api``.

Asked when a workflow is saved, a run created (by ``runs``) or a list of tools read. Only the grants that mean the
caller are read. What they mean is decided in ``auth/access``; a run's own calls are decided by the runner, before each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from daemon.auth.access import Agent, Grant, Policy
from daemon.store.pool import Connection, Pool, reading

_GRANTS = """
(
    SELECT json_agg(json_build_object('subject', subject, 'permission', permission, 'tools', tools,
        'expires_ms', floor(extract(epoch FROM expires_at) * 1000)::bigint))
    FROM agent_grants g WHERE g.agent_id = a.agent_id AND g.subject = ANY({}::text[])
)"""
_OF = f"""
SELECT a.agent_id, b.owner, {_GRANTS.format("$2")} AS grants
FROM unnest($1::text[]) AS a (agent_id) LEFT JOIN agent_bindings b ON b.agent_id = a.agent_id
"""  # noqa: S608 - nothing of it is input
_STARTABLE = f"""
SELECT w.spec, w.version, m.token_maker AS spec_maker, (
    SELECT json_agg(json_build_object('agent_id', a.agent_id, 'owner', b.owner, 'grants', {_GRANTS.format("$3")}))
    FROM (
        SELECT DISTINCT step -> 'tool_config' ->> 'agent_id' AS agent_id
        FROM json_array_elements(w.spec -> 'steps') AS step
    ) AS a LEFT JOIN agent_bindings b ON b.agent_id = a.agent_id
) AS agents
FROM workflows w LEFT JOIN workflow_makers m ON m.workflow_id = w.id AND m.version = w.version
WHERE id = $1 AND user_id = $2 AND archived_at IS NULL
"""  # noqa: S608 - nothing of it is input
_POLICIES = "SELECT agents, tools, risk, writes, open_world, idempotent, requires_approval, denied FROM tool_policies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Startable:
    """A workflow that a run may be made of, and the agents of its steps by id; ``spec`` is its JSON text."""

    spec: str
    version: int
    spec_maker: str | None
    """Who made the service token that this version was saved with, if one was."""
    agents: Mapping[str, Agent]


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
    return {row["agent_id"]: _agent(row["agent_id"], row["owner"], _told(row)) for row in rows}


async def startable(
    connection: Connection, workflow_id: UUID, user_id: str, subjects: Collection[str]
) -> Startable | None:
    """The user's workflow with what these subjects may do with its agents; None where there is none to start."""
    row = await connection.fetchrow(_STARTABLE, workflow_id, user_id, sorted(subjects))
    if row is None:
        return None
    agents = [_agent(one["agent_id"], one["owner"], one["grants"]) for one in orjson.loads(row["agents"] or b"[]")]
    by_id = {agent.agent_id: agent for agent in agents}
    return Startable(spec=row["spec"], version=row["version"], spec_maker=row["spec_maker"], agents=by_id)


def _told(row: asyncpg.Record) -> Any:
    return orjson.loads(row["grants"]) if row["grants"] is not None else None


def _agent(agent_id: str, owner: str | None, told: Sequence[Mapping[str, Any]] | None) -> Agent:
    grants = tuple(Grant(**{**grant, "tools": tuple(grant["tools"])}) for grant in told or ())
    return Agent(agent_id=agent_id, owner=owner, grants=grants)
