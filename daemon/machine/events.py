"""Everything that can have happened to a run. A committed event is a fact for ever; its payload only ever gains fields.

Domain classes only; ``wire.payload`` gives them the JSON shape that v0's frontend knows. Two classes may share a wire
type (``step.progress`` is an attempt begun, or a step failed). Times stand in the event row, not here.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

from msgspec import Struct

from daemon.machine.approval import Difference, Revision, Vote
from daemon.machine.commands import Epoch, Mark, ReqId, Who
from daemon.machine.ground import Risk

Outcome = Literal["done", "failed", "timeout", "canceled", "unknown", "unsent"]
"""How an attempt ended; ``unknown``: nobody can tell whether the tool ran; ``unsent``: it surely did not."""

Harmless = Literal["declared", "read_only", "idempotent", "policy"]
"""Why a call may be repeated: the step declares it, the tool's own annotations do, or an admin's policy."""

PausedReason = Literal[
    "awaiting_approval",
    "step_failed",
    "outcome_unknown",
    "engine_interrupted",
    "agent_unauthorized",
    "held",
    "user_cancel",
]

RELEASE = "release"
"""Who resumes a held run: nobody, the hold is over."""

COMMITS_LOST = "commits_lost"
"""The code of a run parked because Postgres lost commits: nothing runs again before a person says so."""


class RunCreated(Struct, frozen=True, kw_only=True, gc=False):
    type: ClassVar[str] = "run.created"
    title: str
    steps: int
    by: str


class RunResumed(Struct, frozen=True, kw_only=True, gc=False):
    """A person let a paused run go on: its current step will be attempted again."""

    type: ClassVar[str] = "run.resumed"
    paused_reason: PausedReason
    by: str
    who: Who = Who()


class RunCompleted(Struct, frozen=True, kw_only=True, gc=False):
    type: ClassVar[str] = "run.completed"


class RunFailed(Struct, frozen=True, kw_only=True, gc=False):
    """The run is over: rejected, or its own deadline passed. An attempt in flight lingers as after a cancel."""

    type: ClassVar[str] = "run.failed"
    error_code: str
    message: str
    until: int | None = None
    """When the grace for an attempt in flight ends, epoch ms; None: the run had come to a stop by itself."""


class RunCanceled(Struct, frozen=True, kw_only=True, gc=False):
    """The run is over at once; an attempt in flight lingers until the agent's answer or the grace's end."""

    type: ClassVar[str] = "run.canceled"
    reason: str | None
    by: str
    until: int
    """When the grace for an attempt in flight ends, epoch ms."""
    who: Who = Who()


class RunParked(Struct, frozen=True, kw_only=True, gc=False):
    """The engine itself failed on this run, or lost what it knew of it; it stands still until a person resumes it.

    ``error_code``: ``engine_interrupted``, its own turn kept failing; ``commits_lost``, the database came back older
    than the run, so whatever it did since may be done already. A run that was paused already may be parked too.
    """

    type: ClassVar[str] = "step.paused"
    step_index: int
    paused_reason: Literal["engine_interrupted"] = "engine_interrupted"
    error_code: str = "engine_interrupted"
    message: str = ""


class StepPaused(Struct, frozen=True, kw_only=True, gc=False):
    """The step waits: for approval of ``revision``, for a person after a failure, or for what forbids its call.

    ``voids``: why an earlier approval counts no more, a sentence.
    """

    type: ClassVar[str] = "step.paused"
    step_index: int
    paused_reason: PausedReason
    code: str | None = None
    message: str | None = None
    revision: Revision | None = None
    voids: str | None = None


class StepVoted(Struct, frozen=True, kw_only=True, gc=False):
    """One of several who must agree has agreed."""

    type: ClassVar[str] = "step.voted"
    step_index: int
    vote: Vote


class StepApproved(Struct, frozen=True, kw_only=True, gc=False):
    """All have agreed who must; ``vote`` was the last of them."""

    type: ClassVar[str] = "step.approved"
    step_index: int
    vote: Vote


class StepRejected(Struct, frozen=True, kw_only=True, gc=False):
    type: ClassVar[str] = "step.rejected"
    step_index: int
    by: str
    reason: str | None
    who: Who = Who()
    digest: str | None = None


class StepEdited(Struct, frozen=True, kw_only=True, gc=False):
    """Somebody changed the arguments of the call that waits: ``revision`` takes the place of the one before."""

    type: ClassVar[str] = "step.edited"
    step_index: int
    by: str
    revision: Revision
    diff: tuple[Difference, ...]
    who: Who = Who()
    comment: str | None = None


class StepExpired(Struct, frozen=True, kw_only=True, gc=False):
    """Nobody decided in time. ``rejects``: that ends the step; else it waits on, and all votes are gone."""

    type: ClassVar[str] = "step.expired"
    step_index: int
    rejects: bool


class StepSkipped(Struct, frozen=True, kw_only=True, gc=False):
    """A person lets the run go on without this step."""

    type: ClassVar[str] = "step.skipped"
    step_index: int
    by: str
    reason: str | None
    who: Who = Who()


class StepMarkedDone(Struct, frozen=True, kw_only=True, gc=False):
    """A person has seen that the step's work is done, whatever the engine knows of it."""

    type: ClassVar[str] = "step.completed"
    step_index: int
    by: str
    note: str
    who: Who = Who()


class StepRepeating(Struct, frozen=True, kw_only=True, gc=False):
    """Nobody knows whether the tool ran, and it may simply be called again: it will be, at ``at`` (epoch ms)."""

    type: ClassVar[str] = "step.repeating"
    step_index: int
    attempt_index: int
    because: Harmless
    at: int


class StepCompleted(Struct, frozen=True, kw_only=True, gc=False):
    type: ClassVar[str] = "step.completed"
    step_index: int


class StepFailed(Struct, frozen=True, kw_only=True, gc=False):
    type: ClassVar[str] = "step.progress"
    step_index: int
    attempt_index: int


class AttemptIntended(Struct, frozen=True, kw_only=True, gc=False):
    """The engine is about to call the tool; committed before the call, with the epoch that alone may send it."""

    type: ClassVar[str] = "step.progress"
    step_index: int
    attempt_index: int
    req_id: ReqId
    epoch: Epoch
    ack_by: int
    """Epoch ms; an agent silent until then is taken for frozen."""
    deadline_at: int
    """Epoch ms; the tool's deadline."""
    risk: Risk | None = None
    """Of the tool, as its annotations and the policies had it."""


class AttemptSent(Struct, frozen=True, kw_only=True, gc=False):
    """The Gateway took the call, and the agent has not acknowledged it yet."""

    type: ClassVar[str] = "tool.sent"
    req_id: ReqId


class AttemptUnsent(Struct, frozen=True, kw_only=True, gc=False):
    """Proof that the call never left; it may be intended again at ``retry_at`` (epoch ms), or not at all (None)."""

    type: ClassVar[str] = "tool.unsent"
    req_id: ReqId
    reason: str
    detail: str
    retry_at: int | None


class AttemptRunning(Struct, frozen=True, kw_only=True, gc=False):
    """The agent acknowledged the call."""

    type: ClassVar[str] = "tool.status"
    req_id: ReqId


class LogAppended(Struct, frozen=True, kw_only=True, gc=False):
    """Output of the tool, aggregated. ``mark`` is the last letter folded into it, so that repeats are known."""

    type: ClassVar[str] = "tool.log"
    req_id: ReqId
    channel: str
    data: str
    dropped_bytes: int
    dropped_lines: int
    mark: Mark | None


class AttemptCanceling(Struct, frozen=True, kw_only=True, gc=False):
    """The engine will ask the agent to stop: the deadline passed, or no acknowledgement came."""

    type: ClassVar[str] = "tool.canceling"
    req_id: ReqId
    reason: Literal["timeout", "ack_timeout"]
    until: int
    """When the grace for the agent's answer ends, epoch ms."""


class AttemptEnded(Struct, frozen=True, kw_only=True, gc=False):
    """The verdict on an attempt; the first stands for ever. ``result`` goes to the attempt's row, not the payload."""

    type: ClassVar[str] = "tool.result"
    req_id: ReqId
    outcome: Outcome
    answered: bool
    """Whether a RESULT gave this verdict (then a later one is a mere duplicate, not evidence)."""
    error_code: str | None = None
    error_message: str | None = None
    exit_code: int | None = None
    result: Any = None


class EvidenceFound(Struct, frozen=True, kw_only=True, gc=False):
    """What the agent said after the verdict. Moves no status."""

    type: ClassVar[str] = "tool.evidence"
    req_id: ReqId
    ok: bool
    canceled: bool
    error_code: str | None
    error_message: str | None
    result: Any = None


class AttemptSettled(Struct, frozen=True, kw_only=True, gc=False):
    """A RESULT came while the run stood still for an unknown outcome: now it is known, and the run goes on by it."""

    type: ClassVar[str] = "tool.evidence"
    req_id: ReqId
    outcome: Outcome
    error_code: str | None = None
    error_message: str | None = None
    exit_code: int | None = None
    result: Any = None


Event: TypeAlias = (
    RunCreated
    | RunResumed
    | RunCompleted
    | RunFailed
    | RunCanceled
    | RunParked
    | StepPaused
    | StepVoted
    | StepApproved
    | StepRejected
    | StepEdited
    | StepExpired
    | StepSkipped
    | StepMarkedDone
    | StepRepeating
    | StepCompleted
    | StepFailed
    | AttemptIntended
    | AttemptSent
    | AttemptUnsent
    | AttemptRunning
    | LogAppended
    | AttemptCanceling
    | AttemptEnded
    | EvidenceFound
    | AttemptSettled
)
