"""What waits for whose approval: the inbox. Used by ``api``; the rows are the journal's.

Three walks down three indexes, oldest first: where somebody is named, where their own run asks them, and where policy
asks the agent's owner or whom they let approve; each leaves out what that person has said yes to already. Who is named
in few calls, or has few runs, has those looked at all: else who is asked nothing would walk past all that others are
(0.14 s at 48,000 open calls). Whether a word is heard is the actor's to decide; this only finds. The walks find rows of
a few bytes; what is told of them may be a megabyte each, so it is read a few at a time, and no more of it than a page
takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from daemon.auth.caller import Caller
from daemon.machine.commands import RunId
from daemon.store.pool import Pool, reading

FEW = 1000
"""Open calls of a kind that are counted, to look at them all if there are less. A LIMIT says so where they are looked
at: else the planner thinks of so many that it would have the query compiled (JIT)."""


def _walk(calls: str, asked: str, *, when: str = "true") -> str:
    """A SELECT of a page of those ``calls`` (``a``) that wait for who is ``asked``. Each is looked at by itself (OFFSET
    0), so that Postgres goes down the index that is meant."""
    return f"""
    SELECT a.run_id, a.step_index, a.revision, a.opened_at_ms FROM {calls} CROSS JOIN LATERAL (
        SELECT FROM workflow_runs r
        WHERE r.id = a.run_id AND r.status = 'paused' AND r.paused_reason = 'awaiting_approval'
            AND r.current_step_index = a.step_index AND {asked}
            AND NOT ((a.terms ->> 'forbid_self')::boolean AND (r.user_id = $1 OR EXISTS (
                SELECT FROM workflow_run_specs s WHERE s.run_id = a.run_id
                    AND $1 IN (s.principal ->> 'token_maker', s.principal ->> 'spec_maker'))))
            AND NOT EXISTS (SELECT FROM json_array_elements(a.votes) AS vote WHERE vote ->> 'by' = $1) OFFSET 0
    ) waiting
    WHERE a.state = 'open' AND (a.opened_at_ms, a.run_id) > ($3::bigint, $4::uuid) AND {when}
    ORDER BY a.opened_at_ms, a.run_id LIMIT $5"""  # noqa: S608 - nothing of it is input, here and below


_OPEN = "workflow_run_approvals a"
_NAMED = "FROM workflow_run_approvals a WHERE a.state = 'open' AND a.approvers <> '{}' AND a.approvers && $2::text[]"
_IS_NAMED = "NOT a.requires_approval AND a.approvers && $2::text[]"
_OWN = "FROM workflow_runs r WHERE r.user_id = $1 AND r.status = 'paused' AND r.paused_reason = 'awaiting_approval'"
_NEWEST = f"ORDER BY r.created_at DESC, r.id DESC LIMIT {FEW}"
_CALLS_OF_OWN = f"""(
    SELECT a.* FROM (SELECT r.id {_OWN} {_NEWEST}) r
    CROSS JOIN LATERAL (SELECT * FROM workflow_run_approvals WHERE run_id = r.id AND state = 'open' OFFSET 0) a
) a"""  # noqa: S608 - as above
_IS_OWN = "a.approvers = '{}' AND NOT a.requires_approval AND r.user_id = $1"
_MY_AGENTS = """
    SELECT agent_id FROM agent_bindings WHERE owner = $1
    UNION SELECT agent_id FROM agent_grants WHERE permission = 'approve' AND subject = ANY($2::text[])"""
_IS_FORCED = """(a.approvers = '{}' OR a.approvers && $2::text[]) AND a.requires_approval
            AND decides_for(a.agent_id, a.tool_name, $2::text[])"""
_INBOX = f"""
WITH counted AS MATERIALIZED (
    SELECT (SELECT count(*) FROM (SELECT {_NAMED} LIMIT {FEW}) n) < {FEW} AS few_named,
        (SELECT count(*) FROM (SELECT {_OWN} {_NEWEST}) n) < {FEW} AS few_own
), found AS (
    ({_walk(f"(SELECT * {_NAMED} LIMIT {FEW}) a", _IS_NAMED, when="(SELECT few_named FROM counted)")})
    UNION ALL ({_walk(_OPEN, _IS_NAMED, when="(SELECT NOT few_named FROM counted)")})
    UNION ALL ({_walk(_CALLS_OF_OWN, _IS_OWN, when="(SELECT few_own FROM counted)")})
    UNION ALL ({_walk(_OPEN, _IS_OWN, when="(SELECT NOT few_own FROM counted)")})
    UNION ALL (SELECT a.* FROM ({_MY_AGENTS}) mine CROSS JOIN LATERAL (
        {_walk(_OPEN, _IS_FORCED, when="a.agent_id = mine.agent_id AND a.requires_approval")}
    ) a)
)
SELECT run_id, step_index, revision, opened_at_ms FROM found ORDER BY opened_at_ms, run_id LIMIT $5
"""  # noqa: S608 - as above
_TOLD = """
SELECT a.run_id, r.title, r.user_id, r.paused_seq, a.step_index, a.revision, a.digest, a.agent_id, a.tool_name,
    a.schema_hash, a.arguments::text AS arguments, a.risk, a.requires_approval, a.approvers, a.terms::text AS terms,
    a.votes::text AS votes, a.opened_at_ms, a.expires_at_ms, a.expired_at_ms, a.edited_by,
    (SELECT s.snapshot -> 'steps' -> a.step_index FROM workflow_run_specs s WHERE s.run_id = a.run_id)::text AS step,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms
FROM unnest($1::uuid[], $2::int[], $3::int[]) AS found (run_id, step_index, revision)
JOIN workflow_run_approvals a USING (run_id, step_index, revision) JOIN workflow_runs r ON r.id = a.run_id
WHERE a.state = 'open' ORDER BY a.opened_at_ms, a.run_id
"""
PAGE_BYTES = 1 << 20
"""Of one page: it ends before the call that would make it larger, but has one call at least."""
AT_ONCE = 10
"""Calls that are read at once, and so how many beyond the page's end may have been."""


class Waited(NamedTuple):
    """Where a page of the inbox ends: it is oldest first, by these two."""

    opened_at_ms: int
    run_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A call that waits for somebody's word. ``step``, ``arguments`` (where edited), ``terms`` and ``votes`` are JSON
    texts; times are epoch ms."""

    run_id: RunId
    title: str | None
    user_id: str
    paused_seq: int
    step_index: int
    revision: int
    digest: str
    agent_id: str
    tool_name: str
    schema_hash: str | None
    arguments: str | None
    risk: str
    requires_approval: bool
    approvers: list[str]
    terms: str
    votes: str
    opened_at_ms: int
    expires_at_ms: int | None
    expired_at_ms: int | None
    edited_by: str | None
    step: str
    now_ms: int

    @property
    def size(self) -> int:
        """Bytes of what may be large."""
        return sum(len(text.encode()) for text in (self.step, self.arguments or "", self.terms, self.votes))


class Page(NamedTuple):
    """Calls that wait, and after which place there are more; None: these are the last."""

    requests: list[Request]
    end: Waited | None


class Approvals:
    """Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def waiting_for(self, caller: Caller, *, after: Waited | None, limit: int) -> Page:
        """What the caller may decide now, oldest first: at most ``limit``, and as many as ``PAGE_BYTES`` hold."""
        place, size = after or Waited(-1, UUID(int=0)), 0
        requests: list[Request] = []
        async with reading(self._pool) as connection:
            found = await connection.fetch(_INBOX, caller.user_id, sorted(caller.subjects), *place, limit + 1)
            for start in range(0, min(limit, len(found)), AT_ONCE):
                some = found[start : min(start + AT_ONCE, limit)]
                keys = ([row[name] for row in some] for name in ("run_id", "step_index", "revision"))
                for row in await connection.fetch(_TOLD, *keys):
                    request = Request(**dict(row))
                    size += request.size
                    if requests and size > PAGE_BYTES:
                        return Page(requests, Waited(requests[-1].opened_at_ms, requests[-1].run_id))
                    requests.append(request)
        last = found[limit - 1] if len(found) > limit else None
        return Page(requests, Waited(last["opened_at_ms"], last["run_id"]) if last is not None else None)
