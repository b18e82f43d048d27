"""What v0's rows say: its specs, and what became of steps and calls, read off its log. Pure; for ``v0_run``.

v0 never stored its ``steps_state``, so it is rebuilt from the events ``step.*`` and ``tool.*``. The log itself is kept
word for word, numbered densely. Decides nothing about how a run goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from msgspec.structs import replace

from daemon.errors import Invalid
from daemon.machine.commands import Epoch, ReqId
from daemon.machine.mending import storable
from daemon.machine.record import LOG_PREVIEW_CHARS
from daemon.machine.spec import WorkflowSpec, parse_spec
from daemon.machine.state import Attempt, AttemptState, Run, RunStatus
from daemon.machine.wire import PREVIEW_CHARS, error

NOT_TOLD = "v0's log does not tell what became of this call; it may have run."
STATUSES: Mapping[str, RunStatus] = {
    "running": "running",
    "paused": "paused",
    "completed": "completed",
    "failed": "failed",
    "canceled": "canceled",
}
ENDS: Mapping[str, str] = {"completed": "run.completed", "failed": "run.failed", "canceled": "run.canceled"}
_VERDICTS: Mapping[str, AttemptState] = {
    "done": "done",
    "failed": "failed",
    "timeout": "timeout",
    "canceled": "canceled",
}
_OPTIONAL = ("description", "variables")
_OPTIONAL_OF_A_STEP = ("type", "approval_policy", "on_error")
_OPTIONAL_OF_A_TOOL = ("arguments", "timeout_ms", "stream")


class Refused(Exception):
    """A row that cannot be taken, and why."""


class V0Event(NamedTuple):
    """One row of v0's ``workflow_run_events``; ``payload`` is decoded, ``at`` is epoch ms."""

    seq: int
    event_type: str
    payload: Any
    at: int


class V0Run(NamedTuple):
    """One row of v0's ``workflow_runs``; times are epoch ms."""

    id: UUID
    workflow_id: UUID
    user_id: str
    status: str
    paused_reason: str | None
    step_index: int
    snapshot: Any
    created_at: int
    started_at: int | None
    finished_at: int | None
    last_activity_at: int | None
    error_code: str | None
    error_message: str | None


class LogRow(NamedTuple):
    seq: int
    event_type: str
    payload: str
    at: int


@dataclass(slots=True)
class Call:
    """One attempt, with what stands beside it in its row (JSON texts)."""

    attempt: Attempt
    error: str | None = None
    exit_code: int | None = None
    result: str | None = None
    log_tail: str = ""


def read_spec(data: object, *, title: str | None = None) -> tuple[WorkflowSpec, str]:
    """v0's spec, validated as ours, and its JSON text. A null where v1 has a default means the default."""
    if not isinstance(data, dict):
        raise Refused("the spec is no JSON object")
    given = _without_nulls(data, _OPTIONAL)
    if title is not None:
        given["title"] = title
    if isinstance(given.get("steps"), list):
        given["steps"] = [_step(step) for step in given["steps"]]
    if storable(given) != given:
        raise Refused("the spec has NUL characters, or is nested deeper than 200: it cannot be kept as it is")
    try:
        spec = parse_spec(given, at="")
        return spec, orjson.dumps(spec.model_dump(mode="json")).decode()
    except Invalid as fault:
        raise Refused(f"the spec is not valid: {fault.detail}") from None
    except orjson.JSONEncodeError as fault:
        raise Refused(f"the spec cannot be stored: {fault}") from None


def _step(step: object) -> object:
    if not isinstance(step, dict):
        return step
    kept = _without_nulls(step, _OPTIONAL_OF_A_STEP)
    tool = kept.get("tool_config")
    return kept | {"tool_config": _without_nulls(tool, _OPTIONAL_OF_A_TOOL)} if isinstance(tool, dict) else kept


def _without_nulls(given: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None or key not in names}


def dense(events: Sequence[V0Event], notes: list[str]) -> list[V0Event]:
    """The events in order, told once, numbered from 1."""
    kept: list[V0Event] = []
    for event in events:
        same = bool(kept) and (event.seq, event.event_type) == (kept[-1].seq, kept[-1].event_type)
        if not same or event.payload != kept[-1].payload:
            kept.append(event)
    if len(kept) < len(events):
        notes.append(f"{len(events) - len(kept)} events stood in the log twice")
    if [event.seq for event in kept] != list(range(1, len(kept) + 1)):
        notes.append("its events were numbered anew: the seqs had gaps or repeats")
    return [event._replace(seq=number) for number, event in enumerate(kept, 1)]


class Fold:
    """Reads the log front to back: what became of steps and calls, and the rows of our log."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.steps = list(run.steps)
        self.index = 0
        self.calls: list[Call] = []
        self.log: list[LogRow] = []
        self.pause: tuple[int, str] | None = None
        """Seq and reason of the pause that stands at the log's end."""
        self.ends: set[str] = set()
        self._by_id = {step.id: index for index, step in enumerate(run.spec.steps)}
        self._seen: set[str] = set()

    def hear(self, event: V0Event) -> None:
        """One event, kept word for word and understood where v0's contract says what it means."""
        body = storable(event.payload if isinstance(event.payload, dict) else {"value": event.payload})
        body = {"type": event.event_type, "run_id": str(self.run.id)} | body
        kind = event.event_type.replace("\x00", "\ufffd")
        self.log.append(LogRow(event.seq, kind, orjson.dumps(body).decode(), event.at))
        if kind in ENDS.values():
            self.ends.add(kind)
            self.pause = None
        index = self._index(body)
        if index is None:
            return
        match kind:
            case "step.progress" if body.get("status") == "running":
                self._begin(index, body, event.at)
            case "step.progress" if body.get("status") == "failed":
                self._at(index, status="failed")
                self.index = index + 1 if self.run.spec.steps[index].continues else index
            case "step.completed":
                self._at(index, status="success")
                self.index = index + 1
                self.pause = None
            case "step.paused":
                self.index = index
                self.pause = (event.seq, str(body.get("paused_reason")))
            case "tool.status" | "tool.log" | "tool.result":
                self._call(index, kind, body, event.at)

    def _index(self, body: Mapping[str, Any]) -> int | None:
        """The step an event is about: by id, else by index."""
        known = self._by_id.get(str(body.get("step_id")))
        index = body.get("current_step_index")
        if known is None and type(index) is int and 0 <= index < len(self.steps):
            return index
        return known

    def _at(self, index: int, **changes: Any) -> None:
        self.steps[index] = replace(self.steps[index], **changes)

    def _begin(self, index: int, body: Mapping[str, Any], at: int) -> None:
        if self.pause is not None and self.pause[1] == "awaiting_approval":
            self._at(index, approved_by=self.run.user_id, approved_at=at)  # v0 let nobody but the owner resume
        self.pause = None
        self.index = index
        self.open(index, body.get("attempt_index"), at)

    def open(self, index: int, number: object, at: int) -> Call:
        """A new call of a step, numbered as v0 did where that number is free."""
        self.close(at)
        count = self.steps[index].attempts
        chosen = number if type(number) is int and count <= number < 10_000 else count
        attempt = Attempt(
            step_index=index,
            index=chosen,
            req_id=ReqId(f"v0-{self.run.id}-{index}-{chosen}"),
            state="acked",
            epoch=Epoch(0),
            first_intended_at=at,
            intended_at=at,
            ack_by=at,
            deadline_at=at + self.run.spec.steps[index].tool_config.timeout_ms,
        )
        self._at(index, status="running", attempts=chosen + 1)
        self.calls.append(Call(attempt))
        return self.calls[-1]

    def close(self, at: int) -> None:
        """The newest call, if it is open: another begins, or the run is over, and nobody told what became of it."""
        call = self.calls[-1] if self.calls else None
        if call is not None and call.attempt.ended_at is None:
            call.attempt = replace(call.attempt, state="unknown", ended_at=at)
            call.error = orjson.dumps(error("outcome_unknown", NOT_TOLD)).decode()

    def _call(self, index: int, kind: str, body: Mapping[str, Any], at: int) -> None:
        call = self._named(index, body, at)
        match kind:
            case "tool.status":
                call.attempt = replace(call.attempt, acked_at=at)
            case "tool.log":
                data = body.get("data")
                text = data if isinstance(data, str) else ""
                call.log_tail = (call.log_tail + text)[-LOG_PREVIEW_CHARS:]
                size = min(call.attempt.log_bytes + len(text.encode()), 2**31 - 1)
                call.attempt = replace(call.attempt, log_bytes=size)
            case _ if call.attempt.ended_at is None:
                self._verdict(call, body, at)

    def _named(self, index: int, body: Mapping[str, Any], at: int) -> Call:
        """The call that an event speaks of; one that the log did not begin begins here."""
        req_id = body.get("req_id")
        req_id = req_id if isinstance(req_id, str) and 0 < len(req_id) <= 255 else None
        for call in reversed(self.calls):
            if req_id is not None and call.attempt.req_id == req_id:
                return call
        last = self.calls[-1] if self.calls else None
        unnamed = last is not None and last.attempt.step_index == index and last.attempt.req_id.startswith("v0-")
        if last is None or not unnamed or last.attempt.ended_at is not None:
            last = self.open(index, body.get("attempt_index"), at)
        if req_id is not None:
            last.attempt = replace(last.attempt, req_id=ReqId(req_id))
        return last

    def _verdict(self, call: Call, body: Mapping[str, Any], at: int) -> None:
        ok = body.get("ok") is True
        state = _VERDICTS.get(str(body.get("state")), "done" if ok else "failed")
        call.attempt = replace(call.attempt, state=state, ended_at=at, answered=True)
        fault = body.get("error")
        if isinstance(fault, dict):
            told = error(_word(fault.get("code")), _word(fault.get("message")))
            call.error = orjson.dumps(told).decode() if told else None
        elif isinstance(fault, str):
            call.error = orjson.dumps(error(None, fault)).decode()
        code = body.get("exit_code")
        call.exit_code = code if type(code) is int and -(2**63) <= code < 2**63 else None
        call.result = _result(body.get("result_preview"))


def _word(value: object) -> str | None:
    return None if value is None else str(value)


def _result(preview: object) -> str | None:
    """v0's log kept at most 800 characters of a result: the whole of a short one, else the piece as a text."""
    if preview is None:
        return None
    if isinstance(preview, str) and len(preview) < PREVIEW_CHARS:
        try:
            orjson.loads(preview)
        except orjson.JSONDecodeError:
            pass
        else:
            return preview
    return orjson.dumps(preview).decode()
