"""Shapes at the machine's edge: payloads and SSE frames as v0's frontend knows them, letters as Gateways send them.

Pure translation; decides nothing. Payload fields are only ever added, never renamed (``tests/golden/v0``).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeAlias, assert_never

import orjson

from daemon.machine.cards import approval_card, said_by, vote_payload
from daemon.machine.commands import Acked, CancelAcked, Chunk, Letter, Mark, ReqId, Result
from daemon.machine.events import (
    AttemptCanceling,
    AttemptEnded,
    AttemptIntended,
    AttemptRunning,
    AttemptSent,
    AttemptSettled,
    AttemptUnsent,
    Event,
    EvidenceFound,
    LogAppended,
    Outcome,
    RunCanceled,
    RunCompleted,
    RunCreated,
    RunFailed,
    RunParked,
    RunResumed,
    StepApproved,
    StepCompleted,
    StepEdited,
    StepExpired,
    StepFailed,
    StepMarkedDone,
    StepPaused,
    StepRejected,
    StepRepeating,
    StepSkipped,
    StepVoted,
)
from daemon.machine.mending import MAX_DEPTH, cut, read, read_without_nul
from daemon.machine.state import WITH_THE_RUN, Attempt, Run, name_of

PREVIEW_CHARS = 800
ERROR_CHARS = 2000
WORD_CHARS = 64
"""Most characters kept of an agent's error message, and of its codes and channel names."""

AboutACall: TypeAlias = (
    AttemptIntended
    | AttemptSent
    | AttemptUnsent
    | AttemptRunning
    | LogAppended
    | AttemptCanceling
    | AttemptEnded
    | EvidenceFound
    | AttemptSettled
)

ABOUT_A_CALL = (
    AttemptRunning,
    LogAppended,
    AttemptEnded,
    AttemptIntended,
    AttemptSent,
    AttemptUnsent,
    AttemptCanceling,
    EvidenceFound,
    AttemptSettled,
)
"""The same for ``isinstance``, which looks in this order: what each step has comes first."""

V0_RESULT_STATE: dict[Outcome, str] = {
    "done": "done",
    "failed": "failed",
    "timeout": "timeout",
    "canceled": "canceled",
    "unknown": "timeout",
    "unsent": "failed",
}
CANCEL_EVIDENCE: dict[Outcome, str] = {
    "canceled": "stopped",
    "done": "too_late",
    "failed": "too_late",
    "timeout": "stopped",
    "unknown": "unknown",
    "unsent": "stopped",
}


def payload(event: Event, run: Run, at: int) -> dict[str, Any]:
    """The payload of ``event``, which led to ``run`` (the state after it) at ``at`` (epoch ms)."""
    if isinstance(event, ABOUT_A_CALL):  # most events are, and a chain of patterns would look at the others first
        return _attempt_payload(event, run, at)
    body: dict[str, Any] = {"type": event.type, "run_id": name_of(run.id)}
    match event:
        case StepCompleted():
            body |= _named_step(event.step_index, run)
        case RunCreated():
            body |= {"workflow_id": str(run.workflow_id), "title": event.title, "steps": event.steps, "by": event.by}
        case RunResumed():
            body |= {"paused_reason": event.paused_reason, "current_step_index": run.step_index, "by": event.by}
            body |= said_by(event.who)
        case RunCompleted():
            pass
        case RunFailed():
            body |= {"error_code": event.error_code, "message": event.message}
            body |= {"until": event.until} if event.until is not None else {}
        case RunCanceled():
            body |= {"reason": event.reason, "by": event.by, "until": event.until} | said_by(event.who)
        case StepApproved() | StepRejected() | StepSkipped() | StepMarkedDone() | StepVoted() | StepEdited():
            body |= _named_step(event.step_index, run) | _decision_payload(event, run)
        case StepExpired():
            body |= _named_step(event.step_index, run) | {"rejects": event.rejects}
        case StepFailed() | StepPaused() | StepRepeating() | RunParked():
            body |= _named_step(event.step_index, run) | _step_payload(event, run)
        case _ as never:
            assert_never(never)
    return body


def _named_step(index: int, run: Run) -> dict[str, Any]:
    steps = run.spec.steps
    if index < len(steps):
        return {"current_step_index": index, "step_id": steps[index].id}
    return {"current_step_index": index}


def _decision_payload(
    event: StepApproved | StepRejected | StepSkipped | StepMarkedDone | StepVoted | StepEdited, run: Run
) -> dict[str, Any]:
    match event:
        case StepApproved() | StepVoted():
            return vote_payload(event.vote, run)
        case StepRejected():
            digest = {"digest": event.digest} if event.digest is not None else {}
            return {"by": event.by, "reason": event.reason} | digest | said_by(event.who)
        case StepEdited():
            diff = [{"path": one.path, "op": one.op, "before": one.before, "after": one.after} for one in event.diff]
            told = {"by": event.by, "comment": event.comment, "diff": diff}
            return told | approval_card(event.revision, run) | said_by(event.who)
        case StepSkipped():
            return {"by": event.by, "reason": event.reason} | said_by(event.who)
        case StepMarkedDone():
            return {"marked": True, "by": event.by, "note": event.note} | said_by(event.who)
        case _ as never:
            assert_never(never)


def _step_payload(event: StepFailed | StepPaused | StepRepeating | RunParked, run: Run) -> dict[str, Any]:
    match event:
        case StepPaused():
            body: dict[str, Any] = {"paused_reason": event.paused_reason}
            body |= {"error_code": event.code, "message": event.message} if event.code is not None else {}
            body |= approval_card(event.revision, run) if event.revision is not None else {}
            return body | ({"voids": event.voids} if event.voids is not None else {})
        case RunParked():
            return {"paused_reason": event.paused_reason, "error_code": event.error_code, "message": event.message}
        case StepFailed():
            return {"status": "failed", "attempt_index": event.attempt_index}
        case StepRepeating():
            return {"attempt_index": event.attempt_index, "because": event.because, "at": event.at}
        case _ as never:
            assert_never(never)


def _attempt_payload(
    event: AboutACall,
    run: Run,
    at: int,
) -> dict[str, Any]:
    attempt = run.find(event.req_id)
    assert attempt is not None  # noqa: S101 - evolve has refused events about attempts it does not know
    step = run.spec.steps[attempt.step_index]
    tool = step.tool_config
    body: dict[str, Any] = {
        "type": event.type,
        "run_id": name_of(run.id),
        "step_id": step.id,
        "req_id": event.req_id,
        "agent_id": tool.agent_id,
        "tool_name": tool.tool_name,
        "attempt_index": attempt.index,
    }
    match event:  # in the order of how often they come
        case AttemptRunning():
            body["state"] = "running"
        case LogAppended():
            body["channel"] = event.channel
            body["data"] = event.data
            body["dropped_bytes"] = event.dropped_bytes
            body["dropped_lines"] = event.dropped_lines
            if event.mark is not None:
                body["mark"] = (event.mark.term, event.mark.number)
        case AttemptEnded():
            _add_result(body, event, attempt, at)
        case AttemptIntended():
            body["status"] = "running"
            body["current_step_index"] = event.step_index
            body["epoch"] = event.epoch
            body["ack_by"] = event.ack_by
            body["deadline_at"] = event.deadline_at
            body["risk"] = event.risk
        case AttemptSent():
            pass
        case AttemptUnsent():
            body |= {"reason": event.reason, "message": event.detail, "retry_at": event.retry_at}
        case AttemptCanceling():
            body |= {"reason": event.reason, "until": event.until}
        case EvidenceFound():
            body |= {"ok": event.ok, "canceled": event.canceled, "error": error(event.error_code, event.error_message)}
            body |= {"result_preview": preview(event.result)}
        case AttemptSettled():
            body |= {"settles": event.outcome, "ok": event.outcome == "done", "canceled": event.outcome == "canceled"}
            body |= {"error": error(event.error_code, event.error_message), "exit_code": event.exit_code}
            body |= {"result_preview": preview(event.result)}
        case _ as never:
            assert_never(never)
    return body


def _add_result(body: dict[str, Any], event: AttemptEnded, attempt: Attempt, at: int) -> None:
    outcome = event.outcome
    body["state"] = V0_RESULT_STATE[outcome]
    body["outcome"] = outcome
    body["answered"] = event.answered
    body["duration_ms"] = max(0, at - attempt.intended_at)
    body["ok"] = outcome == "done"
    body["canceled"] = outcome == "canceled"
    body["exit_code"] = event.exit_code
    body["error"] = error(event.error_code, event.error_message)
    body["result_preview"] = preview(event.result)
    if attempt.canceling in WITH_THE_RUN:
        body["cancel"] = CANCEL_EVIDENCE[outcome]


def error(code: str | None, message: str | None) -> dict[str, str | None] | None:
    """An error as it stands in payloads and attempts: ``{code, message}``, or None."""
    return None if code is None and message is None else {"code": code, "message": message}


def preview(result: Any) -> str | None:
    """The first 800 characters of a result's JSON text."""
    return None if result is None else orjson.dumps(result).decode()[:PREVIEW_CHARS]


@lru_cache(maxsize=256)
def iso(at: int) -> str:
    """Epoch milliseconds as ISO 8601 UTC with milliseconds. Remembered: the runs of a batch share their moments."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def frames_of(run_id: str, created_at: str, events: Iterable[tuple[int, str, str]]) -> bytes:
    """Events of one moment of a run (seq, type, payload) as SSE frames.

    The payload's JSON stands in its frame unchanged. All else is plain ASCII of our own.
    """
    made = []
    for seq, kind, body in events:
        made.append(
            f'id: {seq}\nevent: {kind}\ndata: {{"type":"run.event","run_id":"{run_id}","seq":{seq},'
            f'"event_type":"{kind}","created_at":"{created_at}","payload":{body}}}\n\n'
        )
    return "".join(made).encode()


def read_letter(raw: bytes, mark: Mark | None = None) -> Letter | None:
    """A Gateway envelope (§3 of its contract) as a letter; None when it says nothing to a run.

    What Postgres or orjson could not keep is mended rather than lost: NUL characters, lone surrogates and invalid UTF-8
    become U+FFFD, what is nested deeper than 200 is cut there.
    """
    envelope = read(raw)
    if not isinstance(envelope, dict) or not isinstance(envelope.get("req_id"), str):
        return None
    return letter_of(str(envelope.get("type")), envelope["req_id"], _payload(envelope), raw, mark)


def letter_of(kind: str, req_id: str, body: dict[str, Any], raw: bytes, mark: Mark | None = None) -> Letter | None:
    """As ``read_letter``, of an envelope that somebody has parsed already: ``body`` is its payload, and ours now."""
    if b"\\u0000" in raw:
        body = _payload(read_without_nul(raw))
    if len(raw) > MAX_DEPTH and raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        cut(body)
    return letter(kind, ReqId(req_id), body, mark)


def _payload(envelope: object) -> dict[str, Any]:
    body = envelope.get("payload") if isinstance(envelope, dict) else None
    return body if isinstance(body, dict) else {}


def letter(kind: str, req_id: ReqId, body: dict[str, Any], mark: Mark | None = None) -> Letter | None:
    """An envelope's type and payload as a letter; None when it says nothing to a run."""
    match kind:
        case "INVOKE_ACK":
            return Acked(req_id=req_id, accepted=body.get("accepted") is True, reason=_text(body.get("reason")))
        case "CHUNK":
            return Chunk(
                req_id=req_id,
                channel=_text(body.get("channel")) or "stdout",
                data=data if isinstance(data := body.get("data"), str) else "",
                dropped_bytes=_count(body.get("dropped_bytes")),
                dropped_lines=_count(body.get("dropped_lines")),
                mark=mark,
            )
        case "RESULT":
            fault = body.get("error")
            fault = fault if isinstance(fault, dict) else {}
            return Result(
                req_id=req_id,
                ok=body.get("ok") is True,
                canceled=body.get("canceled") is True,
                error_code=_text(fault.get("code")),
                error_message=_text(fault.get("message"), ERROR_CHARS),
                exit_code=_exit_code(body.get("exit_code")),
                result=body.get("result_json"),
            )
        case "CANCEL_ACK":
            return CancelAcked(req_id=req_id, will_cancel=body.get("will_cancel") is True)
        case _:
            return None


def _text(value: object, most: int = WORD_CHARS) -> str | None:
    return value[:most] if isinstance(value, str) else None


def _exit_code(value: object) -> int | None:
    """A signed 64-bit number, which is what the column holds; anything else says nothing."""
    return value if type(value) is int and -(2**63) <= value < 2**63 else None


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value < 2**53 else 0
