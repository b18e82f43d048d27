"""How a commit is written: the grouped commit, the append, and their parameters. Read beside ``journal`` and ``tail``.

The commit is one statement for many runs, and all or nothing: where one of them does not pass the fence, it fails with
``FENCED``, and ``journal`` asks which. Nearly always all pass, and then no row need be asked whether its run did. The
runs are given in id order, so that two batches seldom wait for each other in a circle; if they do, Postgres ends one,
and it is repeated. A batch comes as arrays of rows (``schema/0009``): as sixty arrays of columns it took 1.4 times as
long, and the node twice the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from daemon.machine.commands import RunId
from daemon.machine.record import AttemptRow, EventRow, StepRow, Transition
from daemon.store.tail import Tail

_MOVE = """
WITH moved AS (
    UPDATE workflow_runs r SET
        last_seq = g.last_seq, status = g.status, paused_reason = g.paused_reason, paused_seq = g.paused_seq,
        current_step_index = g.step_index, last_activity_at = to_timestamp(g.at_ms / 1e3::float8),
        started_at = to_timestamp(g.started_ms / 1e3::float8), finished_at = to_timestamp(g.finished_ms / 1e3::float8),
        error_code = g.error_code, error_message = g.error_message, recoveries = 0, wake_at = NULL
    FROM unnest($1::commit_run_after[]) AS g
    WHERE r.id = g.run_id AND r.epoch = g.epoch AND r.owner = g.owner AND r.last_seq = g.expected_seq
        AND (g.page IS NULL OR EXISTS (
            SELECT FROM workflow_run_pages p WHERE p.run_id = g.run_id AND p.first_seq = g.page))
        AND ($5::bigint IS NULL OR $5 = (SELECT version FROM authority_version))
    RETURNING r.id, r.last_seq, r.user_id
), step_rows AS (
    INSERT INTO workflow_run_steps AS s (
        run_id, step_index, step_id, status, attempts, approved_by, approved_at_ms, decided_by, decided_at_ms, note)
    SELECT t.* FROM unnest($2::commit_step[]) AS t
    ON CONFLICT (run_id, step_index) DO UPDATE SET
        status = excluded.status, attempts = excluded.attempts,
        approved_by = excluded.approved_by, approved_at_ms = excluded.approved_at_ms,
        decided_by = excluded.decided_by, decided_at_ms = excluded.decided_at_ms, note = excluded.note
), attempt_rows AS (
    INSERT INTO workflow_run_attempts AS a (
        run_id, step_index, attempt, req_id, epoch, state, first_intended_at_ms, intended_at_ms, ack_by_ms,
        deadline_at_ms, acked_at_ms, canceling, cancel_until_ms, retry_at_ms, tries, unsent_reason, unsent_detail,
        ended_at_ms, answered, log_bytes, risk, mark_term, mark_number, arguments, error, exit_code, result, log_tail)
    SELECT t.run_id, t.step_index, t.attempt, t.req_id, t.epoch, t.state, t.first_ms, t.intended_ms, t.ack_ms,
        t.deadline_ms, t.acked_ms, t.canceling, t.cancel_ms, t.retry_ms, t.tries, t.unsent_reason, t.unsent_detail,
        t.ended_ms, t.answered, t.log_bytes, t.risk, t.mark_term, t.mark_number,
        coalesce(t.arguments, '{}')::json, t.error::json, t.exit_code, t.result::json, coalesce(t.log_tail, '')
    FROM unnest($3::commit_attempt_of_risk[]) AS t
    ON CONFLICT (run_id, step_index, attempt) DO UPDATE SET
        epoch = excluded.epoch, state = excluded.state, intended_at_ms = excluded.intended_at_ms,
        ack_by_ms = excluded.ack_by_ms, deadline_at_ms = excluded.deadline_at_ms, acked_at_ms = excluded.acked_at_ms,
        canceling = excluded.canceling, cancel_until_ms = excluded.cancel_until_ms, retry_at_ms = excluded.retry_at_ms,
        tries = excluded.tries, unsent_reason = excluded.unsent_reason, unsent_detail = excluded.unsent_detail,
        ended_at_ms = excluded.ended_at_ms, answered = excluded.answered, log_bytes = excluded.log_bytes,
        risk = excluded.risk,
        mark_term = excluded.mark_term, mark_number = excluded.mark_number,
        error = coalesce(excluded.error, a.error), exit_code = coalesce(excluded.exit_code, a.exit_code),
        result = coalesce(excluded.result, a.result), log_tail = right(a.log_tail || excluded.log_tail, 8000)
), page_rows AS (
    INSERT INTO workflow_run_pages (run_id, first_seq, events, created_at)
    SELECT t.run_id, t.first_seq, t.events, to_timestamp(t.at_ms / 1e3::float8)
    FROM unnest($4::commit_page[]) AS t
"""

_DECIDE = """), verdict_rows AS (
    UPDATE workflow_run_commands c SET
        verdict = CASE WHEN t.applied THEN 'applied' ELSE 'refused' END,
        applied_seq = CASE WHEN t.applied THEN moved.last_seq END, code = t.code, message = t.message
    FROM unnest($6::commit_verdict[]) AS t JOIN moved ON moved.id = t.run_id
    WHERE c.id = t.command_id AND c.run_id = t.run_id AND c.verdict IS NULL
    RETURNING c.id, c.run_id, moved.user_id, c.kind, c.payload, c.seen_seq, c.issued_by, c.origin, c.verdict,
        c.applied_seq, c.code
), audit_rows AS (
    INSERT INTO audit_log (
        actor, roles, via, address, client, action, outcome, code, run_id, owner, step_id, agent_id, digest, comment,
        detail)
    SELECT v.issued_by, ARRAY(SELECT json_array_elements_text(v.origin -> 'roles')), v.origin ->> 'via',
        v.origin ->> 'address', v.origin ->> 'client', 'run.' || v.kind, v.verdict, v.code, v.run_id, v.user_id,
        coalesce(v.payload ->> 'step_id', asked.step_id), asked.agent_id,
        coalesce(v.payload ->> 'digest', asked.digest),
        coalesce(v.payload ->> 'comment', v.payload ->> 'reason', v.payload ->> 'note'),
        json_strip_nulls(json_build_object('command_id', v.id, 'seen_seq', v.seen_seq, 'applied_seq', v.applied_seq,
            'confirm', v.payload ->> 'confirm'))
    FROM verdict_rows v LEFT JOIN LATERAL (
        SELECT a.agent_id, a.digest, CASE WHEN v.kind = 'resume' THEN (
            SELECT s.snapshot -> 'steps' -> a.step_index ->> 'id' FROM workflow_run_specs s WHERE s.run_id = a.run_id
        ) END AS step_id
        FROM workflow_run_approvals a
        WHERE a.run_id = v.run_id
            AND (v.kind IN ('approve', 'reject', 'edit') OR v.kind = 'resume' AND a.state = 'open')
        ORDER BY a.step_index DESC, a.revision DESC LIMIT 1
    ) asked ON true
), approval_rows AS (
    INSERT INTO workflow_run_approvals AS a (
        run_id, step_index, revision, state, agent_id, tool_name, digest, schema_hash, arguments, risk,
        requires_approval, approvers, terms, votes, opened_at_ms, expires_at_ms, expired_at_ms, ended_at_ms, edited_by)
    SELECT t.run_id, t.step_index, t.revision, t.state, t.agent_id, t.tool_name, t.digest, t.schema_hash,
        t.arguments::json, t.risk, t.requires_approval, t.approvers, t.terms::json, t.votes::json, t.opened_at_ms,
        t.expires_at_ms, t.expired_at_ms, t.ended_at_ms, t.edited_by
    FROM unnest($7::commit_approval[]) AS t
    ON CONFLICT (run_id, step_index, revision) DO UPDATE SET
        state = excluded.state, votes = excluded.votes, expires_at_ms = excluded.expires_at_ms,
        expired_at_ms = excluded.expired_at_ms, ended_at_ms = excluded.ended_at_ms
"""

# Told first: Postgres runs the rest of the statement only then, so that of a batch that is refused nothing is tried.
_TOLD = """
)
SELECT CASE WHEN count(*) = cardinality($1) THEN (date_part('epoch', clock_timestamp()) * 1000)::bigint
    ELSE refuse_commit() END AS now_ms
FROM moved
"""

FENCED = "RW001"
"""The SQLSTATE of a commit of which a run did not pass the fence, so that none moved; raised by ``schema/0021``."""

COMMIT = _MOVE + _TOLD
COMMIT_DECIDING = _MOVE + _DECIDE + _TOLD
"""As COMMIT, where commands got their verdicts or approvals changed: few commits have any, and all would pay. Each
verdict is one line of the audit, and of a commit that is repeated none is, as its commands have their verdicts. A line
tells which call it was that waited, as it stood before the commit; v0's ``resume`` names neither step nor digest."""

# Whoever claims or lets go locks the row FOR UPDATE, and so waits for this, or this for them: then it finds no row.
APPEND = """
INSERT INTO workflow_run_pages (run_id, first_seq, events, changes, created_at)
SELECT r.id, $5::bigint, $6::json, $7::json, to_timestamp($8::bigint / 1e3::float8)
FROM workflow_runs r
WHERE r.id = $1::uuid AND r.epoch = $2::bigint AND r.owner = $3::text
    AND EXISTS (SELECT FROM workflow_run_pages p WHERE p.run_id = $1 AND p.first_seq = $4::bigint)
    AND ($9::bigint IS NULL OR $9 = (SELECT version FROM authority_version))
FOR KEY SHARE OF r
RETURNING (date_part('epoch', clock_timestamp()) * 1000)::bigint
"""
"""A commit of one run that is written to its log alone, after the page $4; see ``tail``. No row: fenced."""

# By the trigger of `schema/0024`, as when a run changes hands. No row where it has, or where this was done before: that
# a run is let go right after an append is common and no fault, so Postgres shall not log one.
CHECKPOINT = """
UPDATE workflow_runs r SET owner = r.owner, recoveries = 0, wake_at = NULL
WHERE r.id = $1::uuid AND r.epoch = $2::bigint AND r.owner = $3::text AND r.last_seq = $4::bigint
RETURNING r.last_seq
"""
"""Write to the rows what was appended after $4; answers how far they go."""

WHERE_IT_STANDS = """
SELECT id, epoch, owner, last_seq, written_seq, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
    (SELECT version FROM authority_version) AS authority
FROM workflow_run_heads WHERE id = ANY($1::uuid[])
"""


class Arguments(NamedTuple):
    """The parameters of COMMIT, and what COMMIT_DECIDING has beside them: rows of the types of ``schema``."""

    moved: list[object]
    decided: list[list[tuple[object, ...]]]

    @property
    def decides(self) -> bool:
        return any(self.decided)


def arguments(batch: Sequence[Transition], tail: Tail | None = None) -> Arguments:
    """The transitions as parameters, and with the one that follows it the tail.

    The oldest authority is named for all: if another stands, nobody moves.
    """
    runs: list[tuple[object, ...]] = []
    steps: list[tuple[object, ...]] = []
    attempts: list[tuple[object, ...]] = []
    pages: list[tuple[object, ...]] = []
    verdicts: list[tuple[object, ...]] = []
    approvals: list[tuple[object, ...]] = []
    authority: int | None = None
    page: int | None
    for one in sorted(batch, key=_by_id):
        run, run_id = one.run, one.run_id
        changed, written_seq, page = one, one.expected_seq, None
        if tail is not None and not tail.empty and tail.precedes(one):
            changed, written_seq, page = tail.carried_by(one), tail.written_seq, tail.page
        fence = (run_id, one.epoch, one.owner, written_seq, page)
        place = (run.last_seq, run.status, run.paused_reason, run.paused_seq, run.step_index)
        runs.append((*fence, *place, one.at, run.started_at, run.finished_at, run.error_code, run.error_message))
        steps += [_step(run_id, row) for row in changed.steps]
        if one.events:
            pages.append((run_id, one.events[0].seq, _page(one.events), one.at))
        attempts += [_attempt(run_id, row) for row in changed.attempts]
        verdicts += [(run_id, *row) for row in one.verdicts]
        approvals += [(run_id, *row) for row in one.approvals]
        if one.authority is not None and (authority is None or one.authority < authority):
            authority = one.authority
    return Arguments([runs, steps, attempts, pages, authority], [verdicts, approvals])


def appending(one: Transition, changes: str, page: int) -> tuple[object, ...]:
    """The parameters of APPEND: the transition, what the new page says of its rows, and the page before it."""
    fence = (one.run_id, one.epoch, one.owner, page)
    return (*fence, one.events[0].seq, _page(one.events), changes, one.at, one.authority)


def _page(events: Sequence[EventRow]) -> str:
    """The events of a commit as one JSON text, read back by ``log``. Their seqs are dense, their types our own."""
    told = [f'["{row.event_type}",{row.payload}]' for row in events]
    return f"[{','.join(told)}]"


def _step(run_id: RunId, row: StepRow) -> tuple[object, ...]:
    who = (row.approved_by, row.approved_at_ms, row.decided_by, row.decided_at_ms)
    return (run_id, row.step_index, row.step_id, row.status, row.attempts, *who, row.note)


def _attempt(run_id: RunId, row: AttemptRow) -> tuple[object, ...]:
    """One display: as sums of parts it took twice as long, and each step has two."""
    a, mark = row.attempt, row.attempt.mark
    return (
        run_id,
        a.step_index,
        a.index,
        a.req_id,
        a.epoch,
        a.state,
        a.first_intended_at,
        a.intended_at,
        a.ack_by,
        a.deadline_at,
        a.acked_at,
        a.canceling,
        a.cancel_until,
        a.retry_at,
        a.tries,
        a.unsent_reason,
        a.unsent_detail,
        a.ended_at,
        a.answered,
        a.log_bytes,
        a.risk,
        None if mark is None else mark.term,
        None if mark is None else mark.number,
        row.arguments,
        row.error,
        row.exit_code,
        row.result,
        row.log_tail,
    )


def _by_id(one: Transition) -> bytes:
    return one.run_id.bytes
