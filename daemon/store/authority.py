"""Bindings, grants, policies and holds as those read them who decide by them: all of one moment, with its version.

Used by ``runtime/authority`` and, for checks at a request, by ``api``. They are changed in ``agents``, ``policies`` and
``holds``; triggers raise the version with each change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daemon.auth.access import Agent, Grant, Hold, Policy
from daemon.store.pool import Pool, reading

_READ = """
SELECT (SELECT version FROM authority_version) AS version,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
    ARRAY(SELECT ROW(agent_id, owner) FROM agent_bindings WHERE agent_id = ANY($1::text[])) AS bindings,
    ARRAY(
        SELECT ROW(agent_id, subject, permission, tools, (extract(epoch FROM expires_at) * 1000)::bigint)
        FROM agent_grants WHERE agent_id = ANY($1::text[]) AND (expires_at IS NULL OR expires_at > clock_timestamp())
    ) AS grants,
    ARRAY(
        SELECT ROW(agents, tools, risk, writes, open_world, idempotent, requires_approval, denied) FROM tool_policies
    ) AS policies,
    ARRAY(SELECT ROW(scope, target, reason, held_by) FROM holds WHERE released_at IS NULL ORDER BY id) AS holds
"""

_WAKE_HELD = """
UPDATE workflow_runs SET wake_at = clock_timestamp()
WHERE owner IS NULL AND status = 'paused' AND paused_reason = 'held' AND wake_at IS NULL
"""

# Which policy is heard where several fit, the run's node decides; here one that asks for approval is enough.
_WAKE_ASKED = """
UPDATE workflow_runs r SET wake_at = clock_timestamp()
FROM workflow_run_approvals a
WHERE r.id = a.run_id AND r.owner IS NULL AND r.status = 'paused' AND r.paused_reason = 'awaiting_approval'
    AND (r.wake_at IS NULL OR r.wake_at > clock_timestamp()) AND a.state = 'open' AND NOT a.requires_approval
    AND EXISTS (
        SELECT FROM tool_policies p
        WHERE p.requires_approval AND tool_fits(p.agents, a.agent_id) AND tool_fits(p.tools, a.tool_name)
    )
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What stands at one moment: the agents that were asked for, and all policies and holds."""

    version: int
    now_ms: int
    agents: dict[str, Agent]
    policies: tuple[Policy, ...]
    holds: tuple[Hold, ...]


class AuthorityRecords:
    """The tables of authority, read. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def read(self, agents: Sequence[str]) -> Said:
        """What stands about these agents; one that nobody bound has no owner."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(_READ, list(agents))
        assert row is not None  # noqa: S101 - a SELECT without FROM answers one row
        grants: dict[str, list[Grant]] = {}
        for agent_id, subject, permission, tools, expires_ms in row["grants"]:
            given = Grant(subject=subject, permission=permission, tools=tuple(tools), expires_ms=expires_ms)
            grants.setdefault(agent_id, []).append(given)
        owners: dict[str, str] = dict(row["bindings"])
        return Said(
            version=row["version"],
            now_ms=row["now_ms"],
            agents={
                agent_id: Agent(agent_id=agent_id, owner=owners.get(agent_id), grants=tuple(grants.get(agent_id, ())))
                for agent_id in agents
            },
            policies=tuple(
                Policy(**dict(zip(Policy.__struct_fields__, policy, strict=True))) for policy in row["policies"]
            ),
            holds=tuple(Hold(**dict(zip(Hold.__struct_fields__, hold, strict=True))) for hold in row["holds"]),
        )

    async def version(self) -> int:
        """The version that stands."""
        async with reading(self._pool) as connection:
            found: int = await connection.fetchval("SELECT version FROM authority_version")
        return found

    async def wake_held(self) -> None:
        """Let every passive run that a hold keeps be looked at again: whoever takes it sees whether it is over."""
        async with reading(self._pool) as connection:
            await connection.execute(_WAKE_HELD)

    async def wake_asked(self) -> None:
        """And every one that asks somebody where a policy may want others to be asked."""
        async with reading(self._pool) as connection:
            await connection.execute(_WAKE_ASKED)
