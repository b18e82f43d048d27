"""Resources as v0's frontend knows them: the Run with its ``steps_state``, moments, JSON answers. Pure translation."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from aiohttp import web

from daemon.store.runs import ApprovalView, RunItem, RunView, StepView

TRAITS = ("risk", "writes", "open_world", "idempotent", "requires_approval")
"""What is told of a tool beside its name."""


class StepTold(NamedTuple):
    """What is told of a step's spec; ``key`` and ``call`` are the beginnings of JSON texts that name it."""

    id: str
    agent_id: str
    tool_name: str
    key: str
    call: str
    approvers: frozenset[str] = frozenset()
    quorum: int = 1
    forbid_self: bool = False
    editable: bool = False

    @property
    def alone(self) -> bool:
        """Whether its terms want others to agree, and it names nobody."""
        return not self.approvers and (self.forbid_self or self.quorum > 1)

    def too_few(self, starters: frozenset[str]) -> bool:
        """Whether fewer than its quorum are left of those whom it names, if these start the run. Of a group nobody
        knows how many are in it."""
        left = self.approvers - starters if self.forbid_self else self.approvers
        named = bool(self.approvers) and all(one.startswith("user:") for one in self.approvers)
        return named and len(left) < self.quorum


@lru_cache(maxsize=256)
def steps_of(snapshot: str) -> tuple[StepTold, ...]:
    """Of each step in turn. Runs of one workflow share a snapshot to the letter, so it is parsed once."""
    found = []
    for step in orjson.loads(snapshot)["steps"]:
        step_id, tool = step["id"], step["tool_config"]
        call = orjson.dumps({"agent_id": tool["agent_id"], "tool_name": tool["tool_name"]}).decode()[:-1] + ","
        key = orjson.dumps(step_id).decode() + ":"
        terms = step.get("approval") or {}
        found.append(
            StepTold(
                step_id,
                tool["agent_id"],
                tool["tool_name"],
                key,
                call,
                frozenset(terms.get("approvers", ())),
                terms.get("quorum", 1),
                terms.get("forbid_self", False),
                terms.get("allow_edit", False),
            )
        )
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
        "steps_state": orjson.Fragment(_steps_state(view)),
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


def _steps_state(view: RunView) -> str:
    """By step, as JSON text: what is in it comes as text from Postgres, and a run may have a thousand steps."""
    specs, states = steps_of(view.snapshot), {step.step_id: step for step in view.steps}
    asked = {approval.step_index: approval for approval in view.approvals}  # of each step the newest is told
    attempts: dict[int, list[str]] = {}
    for attempt in view.attempts:
        attempts.setdefault(attempt.step_index, []).append(specs[attempt.step_index].call + attempt.told[1:])
    entries = []
    for index, spec in enumerate(specs):
        made, step = ",".join(attempts.get(index, ())), states.get(spec.id)
        status = "pending" if step is None else step.status
        said = _said(step, asked.get(index)) if step is not None or asked else ""
        entries.append(f'{spec.key}{{"status":"{status}","attempts":[{made}]{said}}}')
    return "{" + ",".join(entries) + "}"


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


def _said(step: StepView | None, approval: ApprovalView | None) -> str:
    """What people said of a step, or were asked: further members of a JSON object."""
    told: dict[str, Any] = {}
    if step is not None and step.approved_at_ms is not None:
        told |= {"approved": True, "approved_at": step.approved_at_ms // 1000, "approved_by": step.approved_by}
    if step is not None and step.decided_at_ms is not None:
        told |= {"decided_by": step.decided_by, "decided_at": step.decided_at_ms // 1000, "note": step.note}
    if approval is not None:
        told["approval"] = approval_shape(approval)
    return "," + orjson.dumps(told).decode()[1:-1] if told else ""
