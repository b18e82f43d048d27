"""What one turn leaves behind: the transition that the store commits, with every row made here, purely.

``Transition`` is the unit of "persist, then speak". Rows are tuples in the order of the columns in ``store/commit``.
Steps and attempts are written only when they changed, so a step costs the same in a run of ten and of a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import orjson
from msgspec import Struct, convert, to_builtins
from msgspec.structs import replace

from daemon.machine.approval import Revision, RevisionState, Vote, arguments_text
from daemon.machine.commands import CommandId, Epoch, ReqId, RunId
from daemon.machine.decide_approval import NOT_AN_APPROVER
from daemon.machine.decision import Refusal
from daemon.machine.events import (
    AttemptEnded,
    AttemptIntended,
    AttemptSettled,
    LogAppended,
    StepApproved,
    StepEdited,
    StepPaused,
    StepRejected,
    StepVoted,
)
from daemon.machine.evolve import Happened
from daemon.machine.ground import Traits
from daemon.machine.state import Attempt, Run, name_of
from daemon.machine.wire import ABOUT_A_CALL, AboutACall, error, frames_of, iso, payload

LOG_PREVIEW_CHARS = 8000
GROUNDED = frozenset({AttemptIntended, StepVoted, StepApproved, StepRejected, StepEdited})
"""What may happen only by the grants, policies and holds that stand at its commit: calls, and what people decide."""


class EventRow(Struct, frozen=True, gc=False):
    """``payload`` is JSON text."""

    seq: int
    event_type: str
    payload: str


class StepRow(Struct, frozen=True, gc=False, omit_defaults=True):
    step_index: int
    step_id: str
    status: str
    attempts: int
    approved_by: str | None = None
    approved_at_ms: int | None = None
    decided_by: str | None = None
    decided_at_ms: int | None = None
    note: str | None = None


class AttemptRow(Struct, frozen=True, gc=False, omit_defaults=True):
    """Nones in the last four mean "as it was" (a JSON null clears); ``log_tail`` is appended to what stands."""

    attempt: Attempt
    arguments: str | None = None
    error: str | None = None
    exit_code: int | None = None
    result: str | None = None
    log_tail: str | None = None


class ApprovalRow(NamedTuple):
    """``arguments``: as edited, else None; ``terms`` and ``votes`` are JSON texts. Times are epoch ms."""

    step_index: int
    revision: int
    state: str
    agent_id: str
    tool_name: str
    digest: str
    schema_hash: str | None
    arguments: str | None
    risk: str
    requires_approval: bool
    approvers: list[str]
    terms: str
    votes: str
    opened_at: int
    expires_at: int | None
    expired_at: int | None
    ended_at: int | None
    edited_by: str | None


class VerdictRow(NamedTuple):
    command_id: CommandId
    applied: bool
    code: str | None
    message: str | None


class Told(Struct, frozen=True, gc=False):
    """What watchers hear of a run: its log goes to ``last_seq``, and these are the SSE frames from ``first_seq`` on.

    Without frames (then first > last) the log is to be read.
    """

    first_seq: int
    last_seq: int
    terminal: bool
    frames: bytes

    def pack(self) -> bytes:
        """A head line of JSON, then the frames as they go to clients. The list is for nodes of the release before."""
        return orjson.dumps([self.first_seq, self.last_seq, self.terminal, []]) + b"\n" + self.frames

    @classmethod
    def unpack(cls, message: bytes) -> Told:
        head, _, frames = message.partition(b"\n")
        first, last, terminal, *_ = orjson.loads(head)
        return cls(first, last, terminal, frames)


class Known(NamedTuple):
    """A run as its owner knows it to be committed."""

    run_id: RunId
    epoch: Epoch
    owner: str
    last_seq: int


class Outcomes:
    """What became of a batch: ``committed`` (run → Postgres time, epoch ms), ``fenced``, ``poisoned`` (and why), and
    ``outdated``: decided by grants, policies and holds that are not the present ones, so to be decided again."""

    __slots__ = ("committed", "fenced", "outdated", "poisoned")

    def __init__(self) -> None:
        self.committed: dict[RunId, int] = {}
        self.fenced: set[RunId] = set()
        self.outdated: set[RunId] = set()
        self.poisoned: dict[RunId, str] = {}


class Transition(Struct, frozen=True, kw_only=True, gc=False):
    """Everything a turn wants committed, fenced by (run, epoch, owner, expected_seq)."""

    run: Run
    """The state after the turn."""
    epoch: Epoch
    owner: str
    expected_seq: int
    at: int
    """The turn's time, epoch ms; ``created_at`` of its events."""
    events: tuple[EventRow, ...]
    steps: tuple[StepRow, ...]
    attempts: tuple[AttemptRow, ...]
    verdicts: tuple[VerdictRow, ...]
    approvals: tuple[ApprovalRow, ...] = ()
    authority: int | None = None
    """The version of grants, policies and holds that the turn went by; None where nothing happened that needs any."""

    @property
    def run_id(self) -> RunId:
        return self.run.id

    def told(self, *, whole: bool = True) -> Told:
        """What watchers hear once this is committed; not ``whole``: only that there is something to read."""
        if not whole:
            return Told(self.run.last_seq + 1, self.run.last_seq, self.run.terminal, b"")
        events = ((row.seq, row.event_type, row.payload) for row in self.events)
        frames = frames_of(name_of(self.run.id), iso(self.at), events)
        return Told(self.expected_seq + 1, self.run.last_seq, self.run.terminal, frames)


def verdict(command_id: CommandId, refusal: Refusal | None) -> VerdictRow:
    """The row that answers a command."""
    if refusal is None:
        return VerdictRow(command_id, True, None, None)
    return VerdictRow(command_id, False, refusal.code, refusal.message)


def record(
    before: Run,
    happened: Sequence[Happened],
    *,
    at: int,
    epoch: Epoch,
    owner: str,
    verdicts: Sequence[VerdictRow] = (),
    authority: int | None = None,
) -> Transition:
    """Write down what each event leaves, from ``before`` on. ``authority``: the version that the turn went by."""
    run = before
    rows: list[EventRow] = []
    touched: dict[ReqId, _Touched] = {}
    for event, run in happened:
        told = orjson.dumps(payload(event, run, at)).decode()
        rows.append(EventRow(run.last_seq, event.type, told))
        if isinstance(event, ABOUT_A_CALL):
            notes = touched.get(event.req_id)
            if notes is None:
                notes = touched[event.req_id] = _Touched()
            notes.note(event, run.find(event.req_id))
    if run.attempt is not None and before.attempt is not run.attempt:
        touched.setdefault(run.attempt.req_id, _Touched()).attempt = run.attempt
    return Transition(
        run=run,
        epoch=epoch,
        owner=owner,
        expected_seq=before.last_seq,
        at=at,
        events=tuple(rows),
        steps=_changed_steps(before, run),
        attempts=tuple(_attempt_row(run, notes) for notes in touched.values()),
        verdicts=tuple(verdicts),
        approvals=_approvals(before, happened) if run.revision is not before.revision else (),
        authority=authority if _is_grounded(happened, verdicts) else None,
    )


def _is_grounded(happened: Sequence[Happened], verdicts: Sequence[VerdictRow]) -> bool:
    """Whether something happened that must rest on the authority that stands at its commit.

    Also that a call may not be made, or that somebody may not decide, must be so when it is said: who was granted it
    just now would resume in vain, or be refused what is theirs.
    """
    if not GROUNDED.isdisjoint([type(event) for event, _ in happened]):
        return True
    if any(one.code == NOT_AN_APPROVER for one in verdicts):
        return True
    return any(isinstance(one, StepPaused) and one.paused_reason == "agent_unauthorized" for one, _ in happened)


def _approvals(before: Run, happened: Sequence[Happened]) -> tuple[ApprovalRow, ...]:
    """The revisions that the turn made or changed; one that another took the place of is ended here."""
    changed: dict[tuple[int, int], ApprovalRow] = {}
    old, run = before.revision, before
    for event, run in happened:
        new = run.revision
        if new is old or new is None:
            continue
        if old is not None and old.step_index == new.step_index and old.number != new.number:
            state: RevisionState = "superseded" if isinstance(event, StepEdited) else "voided"
            over = replace(old, state=state, ended_at=new.opened_at)
            changed[over.step_index, over.number] = _approval_row(over, run)
        changed[new.step_index, new.number] = _approval_row(new, run)
        old = new
    return tuple(changed.values())


def _approval_row(revision: Revision, run: Run) -> ApprovalRow:
    step, traits = run.spec.steps[revision.step_index], revision.traits
    terms = {
        "timeout_ms": revision.timeout_ms,
        "traits": to_builtins(traits),
        "quorum": step.terms.quorum,
        "forbid_self": step.terms.forbid_self,
        "attempts": revision.attempts,
    }
    return ApprovalRow(
        revision.step_index,
        revision.number,
        revision.state,
        revision.agent_id,
        revision.tool_name,
        revision.digest,
        revision.schema_hash,
        revision.edited,
        traits.risk,
        traits.requires_approval,
        list(step.terms.approvers),
        orjson.dumps(terms).decode(),
        orjson.dumps([to_builtins(vote) for vote in revision.votes]).decode(),
        revision.opened_at,
        revision.expires_at,
        revision.expired_at,
        revision.ended_at,
        revision.edited_by,
    )


def revision_of(row: Sequence[Any]) -> Revision:
    """The revision that a row tells of; the other way round of ``ApprovalRow``."""
    one = ApprovalRow(*row)
    terms: dict[str, Any] = orjson.loads(one.terms)
    return Revision(
        step_index=one.step_index,
        number=one.revision,
        state=cast("RevisionState", one.state),
        agent_id=one.agent_id,
        tool_name=one.tool_name,
        timeout_ms=terms["timeout_ms"],
        schema_hash=one.schema_hash,
        edited=one.arguments,
        digest=one.digest,
        traits=convert(terms["traits"], Traits),
        opened_at=one.opened_at,
        expires_at=one.expires_at,
        expired_at=one.expired_at,
        ended_at=one.ended_at,
        votes=tuple(convert(orjson.loads(one.votes), list[Vote])),
        edited_by=one.edited_by,
        attempts=terms.get("attempts", 0),
    )


class _Touched:
    """What the events of a turn said about one attempt."""

    __slots__ = ("attempt", "ended", "intended", "logs")

    def __init__(self) -> None:
        self.attempt: Attempt | None = None
        self.ended: AttemptEnded | AttemptSettled | None = None
        self.intended = False
        self.logs: list[str] = []

    def note(self, event: AboutACall, attempt: Attempt | None) -> None:
        self.attempt = attempt
        if isinstance(event, LogAppended):
            self.logs.append(event.data)
        elif isinstance(event, (AttemptEnded, AttemptSettled)):
            self.ended = event
        elif isinstance(event, AttemptIntended):
            self.intended = True


def _changed_steps(before: Run, after: Run) -> tuple[StepRow, ...]:
    if before.steps is after.steps:
        return ()
    low, high = before.step_index, min(after.step_index + 1, len(after.steps))
    return tuple(_step_row(after, index) for index in range(low, high) if before.steps[index] != after.steps[index])


def _step_row(run: Run, index: int) -> StepRow:
    step = run.steps[index]
    return StepRow(
        index,
        run.spec.steps[index].id,
        step.status,
        step.attempts,
        step.approved_by,
        step.approved_at,
        step.decided_by,
        step.decided_at,
        step.note,
    )


def _attempt_row(run: Run, notes: _Touched) -> AttemptRow:
    attempt = notes.attempt
    assert attempt is not None  # noqa: S101 - evolve has refused events about attempts it does not know
    step, revision = run.spec.steps[attempt.step_index], run.revision
    mine = revision if revision is not None and revision.step_index == attempt.step_index else None
    arguments = arguments_text(step, mine) if notes.intended else None
    ended = notes.ended
    fault = error(ended.error_code, ended.error_message) if ended else None
    return AttemptRow(
        attempt=attempt,
        arguments=arguments,
        error=orjson.dumps(fault).decode() if fault or isinstance(ended, AttemptSettled) else None,
        exit_code=ended.exit_code if ended else None,
        result=orjson.dumps(ended.result).decode() if ended is not None and ended.result is not None else None,
        log_tail="".join(notes.logs)[-LOG_PREVIEW_CHARS:] or None,
    )
