"""``evolve(run, event, at) -> run``: the only way a run changes. Total over all events, no decisions of its own.

``at`` is the event row's time (epoch ms), ``run.last_seq`` counts the events. Replaying a log through this function
rebuilds the run; illegal moves raise IllegalMove, which parks the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias, assert_never

from msgspec.structs import replace

from daemon.machine.approval import Revision, RevisionState, Vote, ended
from daemon.machine.commands import ReqId
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
from daemon.machine.state import (
    ATTEMPT_MOVES,
    PAST_KEPT,
    RUN_MOVES,
    STEP_MOVES,
    Attempt,
    AttemptState,
    Canceling,
    IllegalMove,
    Run,
    RunStatus,
    StepState,
    StepStatus,
    check_move,
    utf8_size,
)

Happened: TypeAlias = tuple[Event, Run]
"""An event, and the run that it led to."""


def carry(run: Run, events: Iterable[Event], at: int, into: list[Happened]) -> Run:
    """The run after ``events``; each is noted in ``into`` with its state, so that nobody need fold it again."""
    for event in events:
        run = evolve(run, event, at)
        into.append((event, run))
    return run


def evolve(run: Run, event: Event, at: int) -> Run:
    """The run after ``event``, which happened at ``at`` (epoch ms)."""
    return replace(_apply(run, event, at), last_seq=run.last_seq + 1, last_at=max(run.last_at, at))


def _apply(run: Run, event: Event, at: int) -> Run:
    match event:  # what each step has comes first
        case LogAppended():
            attempt = _known(run, event.req_id)
            size = attempt.log_bytes + utf8_size(event.data)
            return _with_attempt(run, event.req_id, replace(attempt, log_bytes=size, mark=event.mark or attempt.mark))
        case AttemptRunning() | AttemptEnded() | AttemptSent() | AttemptUnsent() | AttemptCanceling():
            return _with_attempt(run, event.req_id, _moved(_known(run, event.req_id), event, at))
        case StepCompleted() | StepFailed():
            return _step(run, event)
        case AttemptIntended():
            return _intended(run, event, at)
        case EvidenceFound():
            return _with_attempt(run, event.req_id, replace(_known(run, event.req_id), answered=True))
        case AttemptSettled():
            return _settled(run, event, at)
        case StepRepeating():
            return _repeating(run, event)
        case StepApproved() | StepRejected() | StepSkipped() | StepMarkedDone():
            return _decided(run, event, at)
        case StepVoted() | StepEdited() | StepExpired():
            return _asked(run, event, at)
        case _:
            return _run(run, event, at)


def _run(
    run: Run,
    event: RunCreated | RunResumed | RunCompleted | RunFailed | RunCanceled | RunParked | StepPaused,
    at: int,
) -> Run:
    match event:
        case RunCreated():
            return replace(run, started_at=at)
        case StepPaused():
            standing = run if run.status == "paused" else _status(run, "paused")
            return replace(
                standing,
                paused_reason=event.paused_reason,
                paused_seq=run.last_seq + 1,
                revision=event.revision or run.revision,
                error_code=event.code,
                error_message=event.message,
            )
        case RunParked():
            standing = run if run.status == "paused" else _status(run, "paused")
            parked = replace(standing, paused_reason=event.paused_reason, paused_seq=run.last_seq + 1)
            return replace(parked, error_code=event.error_code, error_message=event.message)
        case RunResumed():
            resumed = _status(run, "running", paused_reason=None)
            state = run.step_state
            return _with_step(resumed, run.step_index, "pending") if state and state.status == "failed" else resumed
        case RunCompleted():
            return _status(run, "completed", finished_at=at)
        case RunFailed():
            failed = _status(run, "failed", paused_reason=None, finished_at=at)
            failed = replace(failed, error_code=event.error_code, error_message=event.message)
            failed = _closed(failed, "closed", at)
            return failed if event.until is None else _stopping(failed, "run_timeout", event.until)
        case RunCanceled():
            canceled = _status(run, "canceled", paused_reason="user_cancel", finished_at=at)
            return _stopping(_closed(canceled, "closed", at), "user", event.until)
        case _ as never:
            assert_never(never)


def _stopping(run: Run, why: Canceling, until: int) -> Run:
    """The run ended in the middle of a step: what is in flight is asked to stop, until ``until``."""
    if run.step_state is not None:
        run = _with_step(run, run.step_index, "canceled")
    if run.attempt is not None and run.attempt.in_flight:
        run = replace(run, attempt=replace(run.attempt, canceling=why, cancel_until=until))
    return run


def _decided(run: Run, event: StepApproved | StepRejected | StepSkipped | StepMarkedDone, at: int) -> Run:
    """A person's word on the step that the run stands at."""
    index = event.step_index
    match event:
        case StepApproved():
            approved = replace(run.steps[index], approved_by=event.vote.by, approved_at=at)
            run = _with_vote(replace(run, steps=_put(run.steps, index, approved)), event.vote)
            return _status(_closed(run, "approved", at), "running", paused_reason=None)
        case StepRejected():
            run = _closed(run, "rejected", at)
            rejected = _with_step(run, index, "rejected", decided_by=event.by, decided_at=at, note=event.reason)
            return _onward(rejected) if run.spec.steps[index].continues else rejected
        case StepSkipped():
            return _onward(_with_step(run, index, "skipped", decided_by=event.by, decided_at=at, note=event.reason))
        case StepMarkedDone():
            return _onward(_with_step(run, index, "success", decided_by=event.by, decided_at=at, note=event.note))
        case _ as never:
            assert_never(never)


def _asked(run: Run, event: StepVoted | StepEdited | StepExpired, at: int) -> Run:
    """What becomes of a revision that goes on waiting, or waited too long."""
    match event:
        case StepVoted():
            return _with_vote(run, event.vote)
        case StepEdited():
            return replace(run, revision=event.revision, paused_seq=run.last_seq + 1)
        case StepExpired() if event.rejects:
            expired = _with_step(_closed(run, "expired", at), event.step_index, "expired")
            return _onward(expired) if run.spec.steps[event.step_index].continues else expired
        case StepExpired():
            return replace(run, revision=replace(_asked_for(run), expires_at=None, expired_at=at, votes=()))
        case _ as never:
            assert_never(never)


def _asked_for(run: Run) -> Revision:
    if run.revision is None:
        raise IllegalMove("nothing waits for approval")
    return run.revision


def _with_vote(run: Run, vote: Vote) -> Run:
    """Runs that are older than revisions have none to vote on."""
    if run.revision is None:
        return run
    return replace(run, revision=replace(run.revision, votes=(*run.revision.votes, vote)))


def _closed(run: Run, state: RevisionState, at: int) -> Run:
    """Nothing waits for approval any more."""
    return replace(run, revision=ended(run.revision, state, at))


def _onward(run: Run) -> Run:
    return _status(replace(run, step_index=run.step_index + 1), "running", paused_reason=None)


def _step(run: Run, event: StepCompleted | StepFailed) -> Run:
    index = event.step_index
    if isinstance(event, StepCompleted):
        old = run.steps[index]
        done = replace(old, status=check_move(STEP_MOVES, old.status, "success"))
        return replace(run, steps=_put(run.steps, index, done), step_index=index + 1)
    failed = _with_step(run, index, "failed")
    return replace(failed, step_index=index + 1) if run.spec.steps[index].continues else failed


def _repeating(run: Run, event: StepRepeating) -> Run:
    if run.attempt is None:
        raise IllegalMove("nothing to repeat")
    return replace(_with_step(run, event.step_index, "pending"), attempt=replace(run.attempt, retry_at=event.at))


def _settled(run: Run, event: AttemptSettled, at: int) -> Run:
    """The run goes on as if the verdict had come in time; a parked one does so once it is resumed."""
    attempt = run.unsettled
    if attempt is None or attempt.req_id != event.req_id:
        raise IllegalMove("a verdict on an attempt that the run does not wait for")
    known = replace(attempt, state=_to(attempt, event.outcome), ended_at=at, answered=True, retry_at=None)
    if run.steps[run.step_index].status != "running":
        run = _with_step(run, run.step_index, "running")
    run = replace(run, attempt=known)
    return _status(run, "running", paused_reason=None) if run.paused_reason == "outcome_unknown" else run


def _intended(run: Run, event: AttemptIntended, at: int) -> Run:
    """A new attempt; or the same one again, when it was proven unsent."""
    again = run.attempt if run.attempt is not None and run.attempt.req_id == event.req_id else None
    if again is not None:
        check_move(ATTEMPT_MOVES, again.state, "intent")
        attempt = replace(
            again,
            state="intent",
            epoch=event.epoch,
            intended_at=at,
            ack_by=event.ack_by,
            deadline_at=event.deadline_at,
            retry_at=None,
            risk=event.risk,
        )
        return replace(run, attempt=attempt)
    attempt = Attempt(
        step_index=event.step_index,
        index=event.attempt_index,
        req_id=event.req_id,
        state="intent",
        epoch=event.epoch,
        first_intended_at=at,
        intended_at=at,
        ack_by=event.ack_by,
        deadline_at=event.deadline_at,
        risk=event.risk,
    )
    if run.in_flight:
        raise IllegalMove("a second attempt while one is in flight")
    past = run.past if run.attempt is None else (run.attempt, *run.past[: PAST_KEPT - 1])
    old = run.steps[event.step_index]
    begun = replace(old, status=check_move(STEP_MOVES, old.status, "running"), attempts=event.attempt_index + 1)
    return replace(run, steps=_put(run.steps, event.step_index, begun), attempt=attempt, past=past)


def _moved(
    attempt: Attempt, event: AttemptEnded | AttemptRunning | AttemptSent | AttemptUnsent | AttemptCanceling, at: int
) -> Attempt:
    match event:
        case AttemptRunning():
            return replace(attempt, state=_to(attempt, "acked"), acked_at=at)
        case AttemptEnded():
            if attempt.ended_at is not None:
                raise IllegalMove("a second verdict on one attempt")
            return replace(
                attempt, state=_to(attempt, event.outcome), ended_at=at, answered=event.answered, retry_at=None
            )
        case AttemptSent():
            return replace(attempt, state=_to(attempt, "sent"))
        case AttemptUnsent():
            return replace(
                attempt,
                state=_to(attempt, "unsent"),
                retry_at=event.retry_at,
                tries=attempt.tries + 1,
                unsent_reason=event.reason,
                unsent_detail=event.detail,
            )
        case AttemptCanceling():
            return replace(attempt, canceling=event.reason, cancel_until=event.until)
        case _ as never:
            assert_never(never)


def _to(attempt: Attempt, state: AttemptState) -> AttemptState:
    return check_move(ATTEMPT_MOVES, attempt.state, state)


def _status(run: Run, status: RunStatus, **changes: Any) -> Run:
    if status == "running":  # why it was parked is told by the log
        changes |= {"error_code": None, "error_message": None}
    return replace(run, status=check_move(RUN_MOVES, run.status, status), **changes)


def _with_step(run: Run, index: int, status: StepStatus, **changes: Any) -> Run:
    old = run.steps[index]
    new = replace(old, status=check_move(STEP_MOVES, old.status, status), **changes)
    return replace(run, steps=_put(run.steps, index, new))


def _put(steps: tuple[StepState, ...], index: int, new: StepState) -> tuple[StepState, ...]:
    return (*steps[:index], new, *steps[index + 1 :])


def _known(run: Run, req_id: ReqId) -> Attempt:
    attempt = run.find(req_id)
    if attempt is None:
        raise IllegalMove("an event about an attempt that this run does not know")
    return attempt


def _with_attempt(run: Run, req_id: ReqId, attempt: Attempt) -> Run:
    if run.attempt is not None and run.attempt.req_id == req_id:
        return replace(run, attempt=attempt)
    return replace(run, past=tuple(attempt if old.req_id == req_id else old for old in run.past))
