"""The statements about whose a run is: claim, load, release, and what the sweep looks for.

Read beside ``claims`` and ``quarantine``; how a commit is written stands in ``commit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")

# With the snapshot, which never changes. Not with steps and attempts: where the claim had to wait for another's commit,
# the row is answered as that commit left it, but other tables as they were when this statement began. (How far its log
# goes is asked anew, by a function, or an append that was waited for and that no row could take would not be seen.)
_CLAIMED = """
RETURNING r.id, r.workflow_id, r.user_id, r.nonce, r.status, r.paused_reason, r.paused_seq, r.current_step_index,
    r.epoch, r.owner, r.last_seq, r.error_code, r.error_message,
    (extract(epoch FROM r.created_at) * 1000)::bigint AS created_ms,
    (extract(epoch FROM r.started_at) * 1000)::bigint AS started_ms,
    (extract(epoch FROM r.finished_at) * 1000)::bigint AS finished_ms,
    (extract(epoch FROM r.last_activity_at) * 1000)::bigint AS last_ms,
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms,
    (SELECT s.snapshot FROM workflow_run_specs s WHERE s.run_id = r.id) AS snapshot,
    (SELECT s.principal FROM workflow_run_specs s WHERE s.run_id = r.id) AS principal,
    newest_seq(r.id) AS log_seq
"""

# Taking a run from an owner who never let it go is a takeover. `recoveries` counts those since its last commit or
# release; past $3 of them, `wake_at` of an owned run says when the next may be: $4 s, doubling up to $5 s.
CLAIM = (
    """
WITH want AS (SELECT * FROM unnest($1::uuid[], $2::text[]) AS t(id, owner)),
held AS (
    SELECT r.id FROM workflow_runs r JOIN want ON want.id = r.id
    WHERE r.owner IS NULL OR r.wake_at IS NULL OR r.wake_at <= clock_timestamp()
    ORDER BY r.id FOR UPDATE OF r
)
UPDATE workflow_runs r SET epoch = r.epoch + 1, owner = want.owner,
    recoveries = CASE WHEN r.owner IS NULL THEN 0 ELSE r.recoveries + 1 END,
    wake_at = CASE WHEN r.owner IS NOT NULL AND r.recoveries >= $3::int THEN
        clock_timestamp() + make_interval(secs => least($4 * 2 ^ least(r.recoveries - $3, 30), $5)) END
FROM want JOIN held ON held.id = want.id WHERE r.id = held.id
"""  # noqa: S608 - both halves are constants
    + _CLAIMED
)

# Takes for $5 those of the runs ($1, as their owner $3 knew them at epoch $2 and seq $4) that the database holds an
# older state of; with a new epoch above both, so nobody who knows either state can write any more.
CLAIM_BEHIND = (
    """
WITH known AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[]) AS t(id, epoch, owner, last_seq)
), held AS (
    SELECT r.id, greatest(r.epoch, k.epoch) + 1 AS epoch FROM workflow_runs r JOIN known k ON k.id = r.id
    WHERE r.status IN ('running', 'paused') AND (
        r.epoch < k.epoch OR r.epoch = k.epoch AND r.owner <> k.owner
        OR k.last_seq > (SELECT h.last_seq FROM workflow_run_heads h WHERE h.id = k.id))
    ORDER BY r.id FOR UPDATE OF r
)
UPDATE workflow_runs r SET epoch = held.epoch, owner = $5, wake_at = NULL FROM held WHERE r.id = held.id
"""  # noqa: S608 - both halves are constants
    + _CLAIMED
)

# The unfinished runs after $1 by id that are not parked for a loss already.
UNFINISHED = """
SELECT id FROM workflow_runs
WHERE status IN ('running', 'paused') AND id > $1 AND error_code IS DISTINCT FROM $2 ORDER BY id LIMIT $3
"""

CLAIM_UNFINISHED = (
    """
WITH held AS (
    SELECT id FROM workflow_runs
    WHERE id = ANY($1::uuid[]) AND status IN ('running', 'paused') ORDER BY id FOR UPDATE
)
UPDATE workflow_runs r SET epoch = r.epoch + 1, owner = $2, wake_at = NULL FROM held WHERE r.id = held.id
"""  # noqa: S608 - both halves are constants
    + _CLAIMED
)

COUNT_UNFINISHED = """
SELECT status, paused_reason, count(*) AS runs FROM workflow_runs
WHERE status IN ('running', 'paused') AND error_code IS DISTINCT FROM $1 GROUP BY status, paused_reason ORDER BY 1, 2
"""

# The rows of each run in the order of the fields of StepState, Attempt and ApprovalRow: the newest $2 attempts first,
# and of the revisions the newest.
LOAD = """
SELECT want.id,
    ARRAY(
        SELECT ROW(step_index, status, attempts, approved_by, approved_at_ms, decided_by, decided_at_ms, note)
        FROM workflow_run_steps WHERE run_id = want.id
    ) AS steps,
    ARRAY(
        SELECT ROW(step_index, attempt, req_id, state, epoch, first_intended_at_ms, intended_at_ms, ack_by_ms,
            deadline_at_ms, acked_at_ms, canceling, cancel_until_ms, retry_at_ms, tries, unsent_reason, unsent_detail,
            ended_at_ms, answered, log_bytes, risk, mark_term, mark_number)
        FROM workflow_run_attempts WHERE run_id = want.id ORDER BY step_index DESC, attempt DESC LIMIT $2
    ) AS attempts,
    (
        SELECT ROW(step_index, revision, state, agent_id, tool_name, digest, schema_hash, arguments::text, risk,
            requires_approval, approvers, terms::text, votes::text, opened_at_ms, expires_at_ms, expired_at_ms,
            ended_at_ms, edited_by)
        FROM workflow_run_approvals WHERE run_id = want.id ORDER BY step_index DESC, revision DESC LIMIT 1
    ) AS approval
FROM unnest($1::uuid[]) AS want(id)
"""

# Who lets a held run go may not have heard that the hold is over, and may never hear it: then the run is due at once.
# How far the log goes is asked once the row is locked: an append that was waited for leaves the row as it was.
RELEASE = """
WITH given AS (
    SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[])
        AS t(id, epoch, owner, wake_ms, last_seq)
), held AS (
    SELECT r.id, g.last_seq FROM workflow_runs r JOIN given g ON g.id = r.id
    WHERE r.epoch = g.epoch AND r.owner = g.owner ORDER BY r.id FOR UPDATE OF r
), known AS MATERIALIZED (SELECT held.id, newest_seq(held.id) = held.last_seq AS well FROM held)
UPDATE workflow_runs r SET owner = NULL, recoveries = 0, wake_at = CASE
    WHEN r.status = 'paused' AND r.paused_reason = 'held' AND NOT EXISTS (
        SELECT FROM holds h WHERE h.released_at IS NULL AND (
            h.scope = 'everything' OR (h.scope = 'user' AND h.target = r.user_id) OR (h.scope = 'agent' AND h.target = (
                SELECT s.snapshot -> 'steps' -> r.current_step_index -> 'tool_config' ->> 'agent_id'
                FROM workflow_run_specs s WHERE s.run_id = r.id)))
    ) THEN clock_timestamp() ELSE to_timestamp(g.wake_ms / 1000.0) END
FROM given g JOIN known ON known.id = g.id AND known.well WHERE r.id = known.id
RETURNING r.id
"""

OPEN_COMMANDS = """
SELECT id, run_id, kind, payload, seen_seq, issued_by, origin,
    floor(extract(epoch FROM created_at) * 1000)::bigint AS at FROM workflow_run_commands
WHERE run_id = ANY($1::uuid[]) AND verdict IS NULL ORDER BY run_id, id
"""

STILL_HELD = """
SELECT r.id FROM unnest($1::uuid[], $2::bigint[], $3::text[]) AS g(id, epoch, owner)
JOIN workflow_runs r ON r.id = g.id AND r.epoch = g.epoch AND r.owner = g.owner
"""

# Also of those that are due already: somebody may just be looking at one, and shall look again. So it waits for locks.
WAKE_WAITING = """
WITH waiting AS (
    SELECT r.id FROM workflow_runs r
    WHERE owner IS NULL AND wake_at IS NOT NULL AND ($1::text[] IS NULL OR (
        SELECT s.snapshot -> 'steps' -> r.current_step_index -> 'tool_config' ->> 'agent_id' = ANY($1)
        FROM workflow_run_specs s WHERE s.run_id = r.id))
    ORDER BY r.id FOR UPDATE OF r
)
UPDATE workflow_runs r SET wake_at = clock_timestamp() FROM waiting WHERE r.id = waiting.id
"""

OWNED = "SELECT id FROM workflow_runs WHERE owner IS NOT NULL AND id > $1 ORDER BY id LIMIT $2"

OWNING_NODES = "SELECT DISTINCT split_part(owner, '/', 1) FROM workflow_runs WHERE owner IS NOT NULL"

OWNED_BY = """
SELECT id FROM workflow_runs WHERE owner IS NOT NULL AND split_part(owner, '/', 1) = ANY($1::text[])
    AND (wake_at IS NULL OR wake_at <= clock_timestamp())
ORDER BY last_activity_at LIMIT $2
"""

COMMANDED = """
SELECT run_id FROM workflow_run_commands
WHERE verdict IS NULL AND created_at < clock_timestamp() - make_interval(secs => $1) GROUP BY run_id
ORDER BY min(created_at) LIMIT $2
"""


def columns(rows: Sequence[Sequence[_T]], width: int) -> list[list[_T]]:
    """Rows as ``width`` columns, for ``unnest``."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
