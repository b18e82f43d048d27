"""What a run owes the world, and when to look at it again. Both are read off the state, never stored.

``Invoke`` is owed to the epoch that intended it, and only while nothing came back: to any later epoch the same state
owes ``Inquire``, because nobody knows whether the call left. The caller remembers what it asked for under its claim.

A run that nobody holds, and that is due for a look and nothing else, needs no holder: ``only_looks`` and ``next_alarm``
tell it by a few facts of its rows, in agreement with ``effects`` and ``deadline`` (``tests/machine/test_looks``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from msgspec import Struct

from daemon.machine.approval import Revision, arguments_of, digest_of
from daemon.machine.commands import Epoch, ReqId
from daemon.machine.events import PausedReason
from daemon.machine.spec import StepSpec
from daemon.machine.state import AttemptState, Canceling, Run, RunStatus


class Invoke(Struct, frozen=True, kw_only=True, gc=False):
    """Call the tool. Sent at most once for each ``(req_id, tries)``, ever."""

    req_id: ReqId
    tries: int
    """How often this attempt was proven unsent before; a ``NotSent`` repeats it."""
    agent_id: str
    tool_name: str
    arguments: Mapping[str, Any]
    timeout_ms: int
    """For the agent, a little later than our own deadline: ours decides, the agent's is the backstop."""
    stream: bool
    schema_hash: str | None = None
    approved: str | None = None
    """The digest that was approved: of exactly this call, or it is not sent. None: it needed no approval."""

    @property
    def as_approved(self) -> bool:
        """Whether it is the call that was approved, if it had to be."""
        return self.approved is None or self.approved == digest_of(
            agent_id=self.agent_id,
            tool_name=self.tool_name,
            schema_hash=self.schema_hash,
            arguments=self.arguments,
            timeout_ms=self.timeout_ms - AGENT_BACKSTOP_MS,
        )


class Inquire(Struct, frozen=True, kw_only=True, gc=False):
    """Ask the Gateway's result store what became of the call; harmless to repeat."""

    req_id: ReqId
    look: int
    """Which occasion this is, so that each is asked about once: as ``_looks`` counts, or ``WHILE_CANCELING``."""


class Cancel(Struct, frozen=True, kw_only=True, gc=False):
    """Ask the agent to stop the call."""

    req_id: ReqId
    agent_id: str
    reason: str


Effect: TypeAlias = Invoke | Inquire | Cancel


class Passive(Struct, frozen=True, kw_only=True):
    """What the rows of a run and of its newest attempt say about what it waits for. Times are epoch ms."""

    status: RunStatus
    paused_reason: PausedReason | None
    ends_at: int | None
    """As ``run_deadline``."""
    req_id: ReqId
    current: bool
    """Whether the attempt is of the step at which the run stands."""
    state: AttemptState
    intended_at: int
    deadline_at: int
    canceling: Canceling | None = None


AGENT_BACKSTOP_MS = 5_000
FIRST_LOOK_MS = 30_000
"""An attempt this old is inquired about although nothing seems wrong, then at twice the age each time."""
LAST_LOOK_MS = 24 * 3600 * 1000
"""A Gateway keeps a RESULT for a day."""
WHILE_CANCELING = -1


def effects(run: Run, epoch: Epoch, now: int) -> tuple[Effect, ...]:
    """Everything owed at ``now`` (epoch ms) by the holder of ``epoch``; repeating what was asked is its to avoid."""
    attempt = run.attempt
    if attempt is None:
        return ()
    looks = _looks(attempt.intended_at, now)
    if not attempt.in_flight:
        return (Inquire(req_id=attempt.req_id, look=looks),) if run.unsettled else ()
    config = run.spec.steps[attempt.step_index].tool_config
    if attempt.canceling is not None:
        cancel = Cancel(req_id=attempt.req_id, agent_id=config.agent_id, reason=attempt.canceling)
        return (Inquire(req_id=attempt.req_id, look=WHILE_CANCELING), cancel)
    inquire = (Inquire(req_id=attempt.req_id, look=looks),) if attempt.epoch != epoch or looks else ()
    if attempt.epoch == epoch and attempt.state == "intent":
        step, revision = run.spec.steps[attempt.step_index], run.approval
        invoke = Invoke(
            req_id=attempt.req_id,
            tries=attempt.tries,
            agent_id=config.agent_id,
            tool_name=config.tool_name,
            arguments=arguments_of(step, revision),
            timeout_ms=config.timeout_ms + AGENT_BACKSTOP_MS,
            stream=config.stream,
            schema_hash=revision.schema_hash if revision is not None else None,
            approved=_approved(step, revision),
        )
        return (*inquire, invoke)
    return inquire


def _approved(step: StepSpec, revision: Revision | None) -> str | None:
    """The digest that the call must have; one that none has, where it was not approved, or never asked about."""
    if revision is None:
        return "" if step.manual else None
    return revision.digest if revision.state == "approved" else ""


def deadline(run: Run, now: int) -> int | None:
    """When (epoch ms, after ``now``) there may be something to do though nobody spoke; None: never."""
    return _nearest(_patience_ends(run), run_deadline(run), _next_look(run, now), approval_expires_at(run))


def _nearest(*alarms: int | None) -> int | None:
    return min([alarm for alarm in alarms if alarm is not None], default=None)


def only_looks(passive: Passive, now: int) -> bool:
    """Whether all that the run may owe at ``now`` is a look: no rule of ``settle`` speaks, only ``Inquire`` is owed."""
    if passive.ends_at is not None and now >= passive.ends_at:
        return False
    if passive.state == "acked":
        return passive.canceling is None and now < passive.deadline_at
    waits_for_a_person = passive.status == "paused" and passive.paused_reason in (
        "outcome_unknown",
        "engine_interrupted",
    )
    return passive.state == "unknown" and passive.current and waits_for_a_person


def next_alarm(passive: Passive, now: int) -> int | None:
    """The ``deadline`` of a run that ``only_looks``."""
    patience = passive.deadline_at if passive.state == "acked" else None
    return _nearest(patience, passive.ends_at, _look_after(passive.intended_at, now))


def run_deadline(run: Run) -> int | None:
    """When (epoch ms) the run as a whole has taken too long; None: it may take for ever, or is over."""
    limit = run.spec.run_timeout_ms
    return None if limit is None or run.started_at is None or run.terminal else run.started_at + limit


def approval_expires_at(run: Run) -> int | None:
    """When (epoch ms) what waits for approval has waited too long; None: it may for ever, or nothing waits."""
    revision = run.approval
    if revision is None or revision.state != "open" or run.paused_reason != "awaiting_approval":
        return None
    return revision.expires_at


def _looks(intended_at: int, now: int) -> int:
    """How many of the looks at 30, 60, 120 … seconds of age are behind; 0 is the look after a takeover."""
    return (max(0, now - intended_at) // FIRST_LOOK_MS).bit_length()


def _next_look(run: Run, now: int) -> int | None:
    attempt = run.attempt
    if attempt is None or not (run.unsettled or (attempt.in_flight and attempt.canceling is None)):
        return None
    return _look_after(attempt.intended_at, now)


def _look_after(intended_at: int, now: int) -> int | None:
    age = FIRST_LOOK_MS << _looks(intended_at, now)
    return intended_at + age if age <= LAST_LOOK_MS else None


def _patience_ends(run: Run) -> int | None:
    """When the current attempt is given up, stopped, sent again or repeated."""
    attempt = run.attempt
    if attempt is None:
        return None
    if attempt.ended_at is not None:
        return attempt.retry_at if run.unsettled and run.status == "running" else None
    if attempt.state == "unsent":
        return attempt.retry_at if run.status == "running" else None
    if attempt.canceling is not None:
        return attempt.cancel_until
    if attempt.state == "acked":
        return attempt.deadline_at
    return min(attempt.ack_by, attempt.deadline_at)
