"""Resources as v0's frontend knows them: the Run with its ``steps_state``, moments, JSON answers. Pure translation."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from daemon.machine.wire import PREVIEW_CHARS
from daemon.store.runs import ApprovalView, AttemptView, RunItem, RunView

TRAITS = ("risk", "writes", "open_world", "idempotent", "requires_approval")
"""What is told of a tool beside its name."""
_PENDING = {"status": "pending", "attempts": ()}
"""What nothing happened to yet; one for all such steps."""


class StepTold(NamedTuple):
    """What is told of a step's spec."""

    id: str
    agent_id: str
    tool_name: str


@lru_cache(maxsize=256)
def steps_of(snapshot: str) -> tuple[StepTold, ...]:
    """Of each step in turn. Runs of one workflow share a snapshot to the letter, so it is parsed once."""
    found = []
    for step in orjson.loads(snapshot)["steps"]:
        tool = step["tool_config"]
        found.append(StepTold(step["id"], tool["agent_id"], tool["tool_name"]))
    return tuple(found)


def json_response(
    body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """A JSON answer."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json", headers=headers)


def moment(at: datetime) -> str:
    """A time in resources: ISO 8601 UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def run_shape(view: RunView) -> dict[str, Any]:
    """The Run of v0's contract."""
    head = view.head
    return {
        "run_id": str(head.id),
        "workflow_id": str(head.workflow_id),
        "status": head.status,
        "paused_reason": head.paused_reason,
        "current_step_index": head.current_step_index,
        "workflow_snapshot": orjson.Fragment(view.snapshot),
        "steps_state": _steps_state(view),
        "created_at": moment(head.created_at),
        "updated_at": moment(head.updated_at),
        "error_code": head.error_code,
        "error_message": head.error_message,
        "last_seq": head.last_seq,
    }


def run_item(item: RunItem) -> dict[str, Any]:
    """A run in a list."""
    head = item.head
    return {
        "run_id": str(head.id),
        "workflow_id": str(head.workflow_id),
        "title": item.title,
        "status": head.status,
        "paused_reason": head.paused_reason,
        "current_step_index": head.current_step_index,
        "step_count": item.step_count,
        "error_code": head.error_code,
        "error_message": head.error_message,
        "last_seq": head.last_seq,
        "created_at": moment(head.created_at),
        "updated_at": moment(head.updated_at),
        "finished_at": moment(item.finished_at) if item.finished_at is not None else None,
    }


def _steps_state(view: RunView) -> dict[str, Any]:
    specs = steps_of(view.snapshot)
    state: dict[str, Any] = dict.fromkeys((spec.id for spec in specs), _PENDING)
    for step in view.steps:
        entry: dict[str, Any] = {"status": step.status, "attempts": []}
        if step.approved_at_ms is not None:
            entry |= {"approved": True, "approved_at": step.approved_at_ms // 1000, "approved_by": step.approved_by}
        if step.decided_at_ms is not None:
            entry |= {"decided_by": step.decided_by, "decided_at": step.decided_at_ms // 1000, "note": step.note}
        state[step.step_id] = entry
    for approval in view.approvals:  # of each step the newest is told
        state[specs[approval.step_index].id] = state[specs[approval.step_index].id] | {
            "approval": approval_shape(approval)
        }
    for attempt in view.attempts:
        spec = specs[attempt.step_index]
        state[spec.id]["attempts"].append(_attempt(attempt, spec))
    return state


def approval_shape(approval: ApprovalView) -> dict[str, Any]:
    """What was to be approved, and who said so."""
    terms = orjson.loads(approval.terms)
    return {
        "revision": approval.revision,
        "state": approval.state,
        "digest": approval.digest,
        "agent_id": approval.agent_id,
        "tool_name": approval.tool_name,
        "schema_hash": approval.schema_hash,
        "arguments": orjson.Fragment(approval.arguments) if approval.arguments is not None else None,
        **terms_shape(terms),
        "approvers": list(approval.approvers),
        "votes": [vote_shape(vote) for vote in orjson.loads(approval.votes)],
        "opened_at": approval.opened_at_ms,
        "expires_at": approval.expires_at_ms,
        "expired_at": approval.expired_at_ms,
        "ended_at": approval.ended_at_ms,
        "edited_by": approval.edited_by,
    }


def terms_shape(terms: Mapping[str, Any]) -> dict[str, Any]:
    """What a revision's row keeps of its terms, as it is told."""
    told = {"timeout_ms": terms["timeout_ms"], "quorum": terms["quorum"]}
    return told | {name: terms["traits"][name] for name in TRAITS}


def vote_shape(vote: Mapping[str, Any]) -> dict[str, Any]:
    """One yes, with where it came from."""
    who = vote["who"]
    told = {"by": vote["by"], "at": vote["at"], "digest": vote["digest"], "comment": vote["comment"]}
    return told | {name: who[name] for name in ("roles", "via", "address", "client")}


def _attempt(attempt: AttemptView, spec: StepTold) -> dict[str, Any]:
    ended = attempt.ended_at_ms
    return {
        "req_id": attempt.req_id,
        "agent_id": spec.agent_id,
        "tool_name": spec.tool_name,
        "attempt_index": attempt.attempt,
        "state": attempt.state,
        "start_ts": attempt.intended_at_ms // 1000,
        "end_ts": ended // 1000 if ended is not None else None,
        "ok": attempt.state == "done" if ended is not None else None,
        "exit_code": attempt.exit_code,
        "canceled": attempt.state == "canceled",
        "error": orjson.Fragment(attempt.error) if attempt.error is not None else None,
        "result_json": orjson.Fragment(attempt.result) if attempt.result is not None else None,
        "result_preview": attempt.result[:PREVIEW_CHARS] if attempt.result is not None else None,
        "log_preview": attempt.log_tail,
    }
