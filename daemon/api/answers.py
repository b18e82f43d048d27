"""What the API answers, as models: told by ``openapi`` and held by tests. Handlers write JSON by ``shapes``, faster.

A field without a default is in every answer; one with a default only where there is something to say.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from daemon.machine.approval import RevisionState
from daemon.machine.commands import CommandKind
from daemon.machine.events import PausedReason
from daemon.machine.ground import Risk
from daemon.machine.spec import WorkflowSpec
from daemon.machine.state import AttemptState, RunStatus, StepStatus


class Fault(BaseModel):
    """What is wrong at one place: a JSON pointer into the body, or a parameter's name."""

    path: str
    message: str


class Problem(BaseModel):
    """RFC 9457: every error. ``code`` is stable and for programs, ``detail`` is for people."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[Fault] | None = None


class Workflow(BaseModel):
    """A template of runs as it stands. Runs keep the snapshot they were started with, whatever becomes of it."""

    workflow_id: UUID
    title: str
    description: str | None
    spec: WorkflowSpec
    version: int = Field(description="1, and one more with each PUT; also the ETag.")
    archived_at: datetime | None = Field(description="Since then it starts nothing.")
    created_at: datetime
    updated_at: datetime


class Warned(BaseModel):
    """A step that would not run as things stand: a run of it is refused, or pauses there."""

    step_id: str
    agent_id: str
    code: Literal["agent_unauthorized", "tool_denied", "approval_unreachable"]
    message: str


class SavedWorkflow(Workflow):
    """A workflow as it was saved; ``warnings`` where there are any."""

    warnings: list[Warned] | None = None


class WorkflowItem(BaseModel):
    """A workflow in a list."""

    workflow_id: UUID
    title: str
    description: str | None
    version: int
    step_count: int
    archived_at: datetime | None
    created_at: datetime
    updated_at: datetime


class WorkflowPage(BaseModel):
    """Workflows, newest first; ``next_cursor`` is null on the last page."""

    items: list[WorkflowItem]
    next_cursor: str | None


class Attempt(BaseModel):
    """One call of a step's tool. Times are epoch seconds."""

    req_id: str
    agent_id: str
    tool_name: str
    attempt_index: int
    state: AttemptState
    start_ts: int
    end_ts: int | None
    ok: bool | None
    exit_code: int | None
    canceled: bool
    error: Any
    result_json: Any
    result_preview: str | None
    log_preview: str
    risk: Risk | None = Field(description="Of the tool, as the call was intended; null if it is older than that.")


class Vote(BaseModel):
    """One person's yes. ``at`` is epoch milliseconds; all but ``comment`` and ``digest`` is from their token."""

    by: str
    at: int
    digest: str | None
    comment: str | None
    roles: list[str]
    via: str | None
    address: str | None
    client: str | None


class Asked(BaseModel):
    """A call as it waits for approval. Times are epoch milliseconds; ``digest`` is what one approves."""

    revision: int
    digest: str
    agent_id: str
    tool_name: str
    timeout_ms: int
    schema_hash: str | None = Field(description="SHA-256 of the tool's input schema; null if the agent could not say.")
    risk: Risk
    writes: bool
    open_world: bool
    idempotent: bool
    requires_approval: bool
    approvers: list[str]
    quorum: int
    votes: list[Vote]
    opened_at: int
    expires_at: int | None
    expired_at: int | None = Field(description="When it went past its time and waited on.")
    edited_by: str | None


class Approval(Asked):
    """The newest revision of a step's call."""

    state: RevisionState
    arguments: dict[str, Any] | None = Field(description="As somebody edited them; null: as the step has them.")
    ended_at: int | None


class ApprovalRequest(Asked):
    """A call that waits for you. ``arguments`` are those that the tool would be given."""

    run_id: UUID
    title: str | None
    started_by: str
    step_id: str
    step_name: str
    step_index: int
    arguments: dict[str, Any]
    forbid_self: bool
    allow_edit: bool
    needs_digest: bool
    on_expiry: Literal["reject", "stay"]
    instructions: str | None
    age_ms: int


class ApprovalPage(BaseModel):
    """What waits for you, oldest first; ``next_cursor`` is null on the last page."""

    items: list[ApprovalRequest]
    next_cursor: str | None


class StepState(BaseModel):
    """What became of a step so far. Times are epoch seconds."""

    status: StepStatus
    attempts: list[Attempt]
    approved: bool | None = None
    approved_at: int | None = None
    approved_by: str | None = None
    decided_by: str | None = None
    decided_at: int | None = None
    note: str | None = None
    approval: Approval | None = None


class Run(BaseModel):
    """A run with everything of it; ``steps_state`` by step id."""

    run_id: UUID
    workflow_id: UUID
    status: RunStatus
    paused_reason: PausedReason | None
    current_step_index: int
    workflow_snapshot: WorkflowSpec
    steps_state: dict[str, StepState]
    created_at: datetime
    updated_at: datetime
    error_code: str | None
    error_message: str | None
    last_seq: int


class RunItem(BaseModel):
    """A run in a list."""

    run_id: UUID
    workflow_id: UUID
    title: str
    status: RunStatus
    paused_reason: PausedReason | None
    current_step_index: int
    step_count: int
    error_code: str | None
    error_message: str | None
    last_seq: int
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None


class RunPage(BaseModel):
    """Runs, newest first; ``next_cursor`` is null on the last page."""

    items: list[RunItem]
    next_cursor: str | None


class RunEvent(BaseModel):
    """One event of a run, as a stream tells it in ``data``. ``payload`` has the event's ``type`` and its facts."""

    type: Literal["run.event"]
    run_id: UUID
    seq: int
    event_type: str
    created_at: datetime
    payload: dict[str, Any]


class EventPage(BaseModel):
    """Events by seq; ``next_after_seq`` is null at the end of the log, as it is now."""

    items: list[RunEvent]
    next_after_seq: int | None


class Command(BaseModel):
    """What a person wanted of a run, and what became of it; ``verdict`` is null while undecided."""

    command_id: UUID
    run_id: UUID
    kind: CommandKind
    created_at: datetime
    verdict: Literal["applied", "refused"] | None
    code: str | None
    message: str | None
    applied_seq: int | None


class BulkItem(BaseModel):
    """What a bulk action did to one run; ``command`` is where to ask about it."""

    run_id: UUID
    outcome: Literal["applied", "refused", "unchanged", "undecided"]
    code: str | None
    message: str | None
    status: RunStatus | None = None
    paused_reason: PausedReason | None = None
    command: str | None = None


class Decided(BaseModel):
    """An item for each decision, in their order; ``command`` is where to ask about it."""

    items: list[BulkItem]


class Bulk(BaseModel):
    """An item for each run that was meant; ``more``: the filter means more runs than ``limit``."""

    action: Literal["cancel", "resume", "retry"]
    items: list[BulkItem]
    more: bool


class Ticket(BaseModel):
    """Opens the event stream of one run, as ``?ticket=``, until ``expires_at``; the stream ends with your token."""

    ticket: str
    expires_at: datetime


class Health(BaseModel):
    """The process turns."""

    status: Literal["ok"]


class Readiness(BaseModel):
    """Whether this node can serve; each part is ``ok`` or says what is wrong."""

    status: Literal["ready", "not_ready", "leaving"]
    checks: dict[str, str]
