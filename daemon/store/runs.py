"""Runs as the API sees them: created, listed, and read with steps and attempts. Moves no status; the journal does.

Used by ``api``. A run and its start command are one statement, so a run that exists will be started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import orjson

from daemon.auth.access import Agent
from daemon.auth.caller import Caller, Origin
from daemon.machine.commands import RunId
from daemon.machine.wire import PREVIEW_CHARS
from daemon.store.ahead import attempts_ahead, steps_ahead
from daemon.store.audit import kept
from daemon.store.entitlements import startable
from daemon.store.matching import SNAPSHOT, TITLE, Filter, matching
from daemon.store.once import Once, forget, writing
from daemon.store.pool import Pool, reading

HEAD_COLUMNS = """
id, workflow_id, user_id, status, paused_reason, paused_seq, current_step_index, last_seq,
    created_at, last_activity_at, error_code, error_message
"""

_CREATE = """
WITH kept AS MATERIALIZED ({}),
run AS (
    INSERT INTO workflow_runs (id, workflow_id, user_id, status, nonce, wake_at, title, step_count)
    SELECT $1::uuid, $2::uuid, $3::text, 'running', $4::bytea, clock_timestamp(), snapshot ->> 'title',
        json_array_length(snapshot -> 'steps')
    FROM kept RETURNING {}
), spec AS (
    INSERT INTO workflow_run_specs (run_id, snapshot, principal) SELECT $1::uuid, snapshot, $8::text::json FROM kept
), start AS (
    INSERT INTO workflow_run_commands (id, run_id, kind, issued_by, origin)
    SELECT $5::uuid, $1::uuid, 'start', $6::text, $7::text::json FROM kept
)
SELECT run.*, kept.snapshot FROM run CROSS JOIN kept
"""
_CREATE_WITH = _CREATE.format("SELECT $9::text::json AS snapshot", HEAD_COLUMNS)
_CREATE_OF = _CREATE.format(
    "SELECT spec AS snapshot FROM workflows"
    " WHERE id = $2::uuid AND user_id = $3::text AND archived_at IS NULL AND version = $9",
    HEAD_COLUMNS,
)

_SEEN = "id = $1 AND (user_id = $2 OR $3 OR asked_to_decide(id, $4::text[]))"
"""Whose run it is, an admin, and whoever was asked about one of its calls: those see it."""
_HEAD = f"SELECT {HEAD_COLUMNS} FROM workflow_run_heads WHERE {_SEEN}"  # noqa: S608 - nothing of it is input

_LISTED = f"""
{HEAD_COLUMNS}, finished_at, {TITLE} AS title,
    coalesce(r.step_count, json_array_length({SNAPSHOT} -> 'steps')) AS step_count
"""

# Attempts come as the JSON that an answer tells of them. Decoded, and written again, those of a run of 400 steps took
# the node 3 ms, in which it did nothing else.
_VIEW = f"""
SELECT {HEAD_COLUMNS},
    (SELECT s.snapshot FROM workflow_run_specs s WHERE s.run_id = r.id) AS snapshot,
    ARRAY(
        SELECT ROW(s.step_id, s.status, CASE WHEN s.approved_at_ms IS NOT NULL OR s.decided_at_ms IS NOT NULL THEN
            json_build_array(s.approved_by, s.approved_at_ms, s.decided_by, s.decided_at_ms, s.note)::text END)
        FROM workflow_run_steps s WHERE s.run_id = r.id ORDER BY s.step_index
    ) AS steps,
    ARRAY(
        SELECT ROW(a.step_index, row_to_json(told)::text)
        FROM workflow_run_attempts a CROSS JOIN LATERAL (
            SELECT a.req_id, a.attempt AS attempt_index, a.state, a.intended_at_ms / 1000 AS start_ts,
                a.ended_at_ms / 1000 AS end_ts, CASE WHEN a.ended_at_ms IS NOT NULL THEN a.state = 'done' END AS ok,
                a.exit_code, a.state = 'canceled' AS canceled, a.error, a.result AS result_json,
                left(a.result::text, {PREVIEW_CHARS}) AS result_preview, a.log_tail AS log_preview, a.risk
        ) told
        WHERE a.run_id = r.id ORDER BY a.step_index, a.attempt
    ) AS attempts,
    ARRAY(
        SELECT ROW(a.step_index, a.revision, a.state, a.agent_id, a.tool_name, a.digest, a.schema_hash,
            a.arguments::text, a.terms::text, a.votes::text, a.approvers, a.opened_at_ms, a.expires_at_ms,
            a.expired_at_ms, a.ended_at_ms, a.edited_by)
        FROM workflow_run_approvals a WHERE a.run_id = r.id ORDER BY a.step_index, a.revision
    ) AS approvals,
    ARRAY(
        SELECT p.changes::text FROM workflow_run_pages p WHERE p.run_id = r.id AND p.first_seq > r.written_seq
        ORDER BY p.first_seq
    ) AS tail
FROM workflow_run_heads r WHERE {_SEEN}
"""  # noqa: S608 - nothing of it is input


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHead:
    """The hot row, for handlers that need no more."""

    id: RunId
    workflow_id: UUID
    user_id: str
    status: str
    paused_reason: str | None
    paused_seq: int
    current_step_index: int
    last_seq: int
    created_at: datetime
    updated_at: datetime
    error_code: str | None
    error_message: str | None

    @property
    def terminal(self) -> bool:
        return self.status in ("completed", "failed", "canceled")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunItem:
    """A run in a list."""

    head: RunHead
    title: str
    step_count: int
    finished_at: datetime | None


class StepView(NamedTuple):
    """One step that something happened to; times are epoch ms."""

    step_id: str
    status: str
    approved_by: str | None = None
    approved_at_ms: int | None = None
    decided_by: str | None = None
    decided_at_ms: int | None = None
    note: str | None = None


class AttemptView(NamedTuple):
    """One attempt. ``told``: a JSON object of what resources tell of it, but for what the step's spec says."""

    step_index: int
    told: str


class ApprovalView(NamedTuple):
    """One revision; ``arguments`` (where edited), ``terms`` and ``votes`` are JSON texts, times are epoch ms."""

    step_index: int
    revision: int
    state: str
    agent_id: str
    tool_name: str
    digest: str
    schema_hash: str | None
    arguments: str | None
    terms: str
    votes: str
    approvers: Sequence[str]
    opened_at_ms: int
    expires_at_ms: int | None
    expired_at_ms: int | None
    ended_at_ms: int | None
    edited_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run with everything of it; ``snapshot`` is JSON text, the others stand in their order."""

    head: RunHead
    snapshot: str
    steps: Sequence[StepView]
    attempts: Sequence[AttemptView]
    approvals: Sequence[ApprovalView] = ()


Permit: TypeAlias = Callable[[str, Mapping[str, Agent]], None]
"""Raises unless a run of this spec (JSON text) may be made, given its agents with the grants to who wants it."""


class Runs:
    """The tables of runs. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def create(
        self,
        *,
        run_id: RunId,
        workflow_id: UUID,
        user_id: str,
        nonce: bytes,
        snapshot: str,
        command_id: UUID,
        origin: Origin,
        principal: str | None = None,
        once: Once | None = None,
    ) -> RunView:
        """The run row, its immutable snapshot and its start command: one statement, all or nothing; as ``view``.

        Raises Repeated and KeyReused, as ``once.writing``.
        """
        given = (run_id, workflow_id, user_id, nonce, command_id, origin.actor, kept(origin), principal)
        async with writing(self._pool, once) as connection:
            row = await connection.fetchrow(_CREATE_WITH, *given, snapshot)
        assert row is not None  # noqa: S101 - what is given is one row
        return RunView(head=head_of(row), snapshot=snapshot, steps=(), attempts=())

    async def create_of(
        self,
        *,
        run_id: RunId,
        workflow_id: UUID,
        caller: Caller,
        nonce: bytes,
        command_id: UUID,
        origin: Origin,
        permit: Permit,
        run_timeout_ms: int | None = None,
        once: Once | None = None,
    ) -> RunView | None:
        """As ``create``, of the spec of the caller's workflow as it stands; None when there is none to start.

        ``permit`` is asked about exactly that spec, and raises to refuse; a refused request leaves its key free.
        """
        start = (run_id, workflow_id, caller.user_id, nonce, command_id, origin.actor, kept(origin))
        async with writing(self._pool, once) as connection:
            row = None
            while row is None:  # again where it was renewed between the two statements
                found = await startable(connection, workflow_id, caller.user_id, caller.subjects)
                if found is None:
                    await forget(connection, once)
                    return None
                permit(found.spec, found.agents)
                given = (*start, _principal(caller, found.spec_maker))
                if run_timeout_ms is None:
                    row = await connection.fetchrow(_CREATE_OF, *given, found.version)
                else:
                    spec = orjson.dumps(orjson.loads(found.spec) | {"run_timeout_ms": run_timeout_ms}).decode()
                    row = await connection.fetchrow(_CREATE_WITH, *given, spec)
        return RunView(head=head_of(row), snapshot=row["snapshot"], steps=(), attempts=())

    async def head(self, run_id: UUID, *, by: Caller) -> RunHead | None:
        """A run that the caller may see; None when there is none."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(_HEAD, run_id, *_reader(by))
        return head_of(row) if row is not None else None

    async def matching(self, wanted: Filter, *, user_id: str, limit: int) -> list[RunHead]:
        """The user's runs that the filter means, newest first, at most ``limit``."""
        query, arguments = matching(HEAD_COLUMNS, wanted, user_id, limit)
        async with reading(self._pool) as connection:
            rows = await connection.fetch(query, *arguments)
        return [head_of(row) for row in rows]

    async def listed(self, wanted: Filter, *, user_id: str, limit: int) -> list[RunItem]:
        """As ``matching``, with what a list shows."""
        query, arguments = matching(_LISTED, wanted, user_id, limit)
        async with reading(self._pool) as connection:
            rows = await connection.fetch(query, *arguments)
        return [
            RunItem(
                head=head_of(row),
                title=row["title"] or "",
                step_count=row["step_count"] or 0,
                finished_at=row["finished_at"],
            )
            for row in rows
        ]

    async def view(self, run_id: UUID, *, by: Caller) -> RunView | None:
        """As ``head``, with snapshot, steps and attempts: one statement, so all of one moment."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(_VIEW, run_id, *_reader(by))
        if row is None:
            return None
        steps, attempts, tail = row["steps"], row["attempts"], row["tail"]
        if tail:
            steps, attempts = steps_ahead(steps, tail), attempts_ahead(attempts, tail)
        return RunView(
            head=head_of(row),
            snapshot=row["snapshot"],
            steps=[
                StepView(step_id, status) if decided is None else StepView(step_id, status, *orjson.loads(decided))
                for step_id, status, decided in steps
            ],
            attempts=[AttemptView(*attempt) for attempt in attempts],
            approvals=[ApprovalView(*approval) for approval in row["approvals"]],
        )


def _principal(caller: Caller, spec_maker: str | None) -> str:
    """As whom a run acts, and who else counts as having started it, as JSON text."""
    makers = {"token_maker": caller.token_maker, "spec_maker": spec_maker}
    known = {name: maker for name, maker in makers.items() if maker is not None}
    return orjson.dumps({"groups": sorted(caller.groups), "admin": caller.admin, **known}).decode()


def _reader(caller: Caller) -> tuple[str, bool, list[str]]:
    """The arguments of _SEEN."""
    return caller.user_id, caller.admin, sorted(caller.subjects)


def head_of(row: asyncpg.Record) -> RunHead:
    """Of a row with HEAD_COLUMNS."""
    return RunHead(
        id=RunId(row["id"]),
        workflow_id=row["workflow_id"],
        user_id=row["user_id"],
        status=row["status"],
        paused_reason=row["paused_reason"],
        paused_seq=row["paused_seq"],
        current_step_index=row["current_step_index"],
        last_seq=row["last_seq"],
        created_at=row["created_at"],
        updated_at=row["last_activity_at"],
        error_code=row["error_code"],
        error_message=row["error_message"],
    )
