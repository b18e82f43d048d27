"""``settle``: what therefore follows, run once per turn after all letters and commands, to a fixed point.

Each rule looks at the run and says which events follow, or none. The first rule that speaks is applied, and all are
asked again. Order matters only where said. No rule looks at how the run came to its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from daemon.machine.approval import Revision, bare_word, freeze, outdated, stands
from daemon.machine.effects import approval_expires_at, run_deadline
from daemon.machine.events import (
    RELEASE,
    AttemptCanceling,
    AttemptEnded,
    AttemptIntended,
    AttemptUnsent,
    Event,
    Harmless,
    RunCompleted,
    RunFailed,
    RunResumed,
    StepCompleted,
    StepExpired,
    StepFailed,
    StepPaused,
    StepRepeating,
)
from daemon.machine.evolve import Happened, carry, evolve
from daemon.machine.ground import Ground
from daemon.machine.needs import Facts
from daemon.machine.state import MAX_ATTEMPTS, Attempt, IllegalMove, Limits, Run, make_req_id

Rule = Callable[[Run, int, Facts], Sequence[Event]]

GATEWAY_UNAVAILABLE = "gateway_unavailable"
NOT_PERMITTED = "not_permitted"
"""Nobody may send it now: the lease was not fresh, or the node is leaving. Anybody may intend the call again."""
_NOT_PERMITTED = "The run's lease was not renewed in time, so no call is sent: another node may hold the run."
_NOBODY_LISTENS = "The event stream of the Gateway is not open, so no call is sent: its result could be lost."


def settle(run: Run, now: int, facts: Facts) -> tuple[Run, list[Happened]]:
    """The run at its fixed point at ``now`` (epoch ms), and what happened on the way there."""
    happened: list[Happened] = []
    if run.started_at is None:
        return run, happened
    for _ in range(8 * len(run.steps) + 16):
        for rule in _rules(run):
            following = rule(run, now, facts)
            if following:
                run = carry(run, following, now, happened)
                break
        else:
            return run, happened
    raise IllegalMove("settle found no fixed point")


def retry_time(attempt: Attempt, now: int, limits: Limits) -> int | None:
    """When a call that was surely not sent may be tried again; None when patience ends (exponential back-off)."""
    at = now + _back_off(attempt.tries, limits)
    return at if at <= attempt.first_intended_at + limits.patience_ms else None


def _back_off(failures: int, limits: Limits) -> int:
    """Milliseconds to wait after so many failures in a row."""
    return min(limits.backoff_ms << min(failures, 16), limits.backoff_max_ms)


def _run_time_is_up(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    until = run_deadline(run)
    if until is None or now < until:
        return ()
    message = f"The run took longer than its run_timeout_ms of {run.spec.run_timeout_ms}."
    return (RunFailed(error_code="run_timeout", message=message, until=now + facts.limits.cancel_grace_ms),)


def _grace_is_over(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    attempt = run.attempt
    if attempt is None or not attempt.in_flight or attempt.cancel_until is None or now < attempt.cancel_until:
        return ()
    message = {
        "timeout": "The deadline passed and the agent did not confirm that it stopped.",
        "ack_timeout": "The agent never acknowledged the call; it may still run it.",
        "user": "The run was canceled and the agent did not say what became of the call.",
        "run_timeout": "The run's deadline passed and the agent did not say what became of the call.",
        None: "",
    }[attempt.canceling]
    return (
        AttemptEnded(
            req_id=attempt.req_id,
            outcome="unknown",
            answered=False,
            error_code="outcome_unknown",
            error_message=message,
        ),
    )


def _time_is_up(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    attempt = run.attempt
    if attempt is None or not attempt.in_flight or attempt.canceling is not None:
        return ()
    until = now + facts.limits.cancel_grace_ms
    if now >= attempt.deadline_at:
        return (AttemptCanceling(req_id=attempt.req_id, reason="timeout", until=until),)
    if attempt.state != "acked" and now >= attempt.ack_by:
        return (AttemptCanceling(req_id=attempt.req_id, reason="ack_timeout", until=until),)
    return ()


def _unsent_for_good(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    attempt = run.attempt
    if attempt is None or attempt.state != "unsent" or attempt.ended_at is not None:
        return ()
    behind = attempt.step_index != run.step_index  # while it waited to go again, the step was rejected or expired
    if attempt.retry_at is not None and not run.terminal and not behind and attempt.canceling is None:
        return ()
    return (
        AttemptEnded(
            req_id=attempt.req_id,
            outcome="unsent",
            answered=False,
            error_code=attempt.unsent_reason,
            error_message=attempt.unsent_detail,
        ),
    )


def _harmless(run: Run, attempt: Attempt, facts: Facts) -> Harmless | None:
    """Why the call may simply be made again; None: a person must decide. An admin's no is above the step's own yes."""
    step = run.spec.steps[attempt.step_index]
    ground = _ground(run, facts)
    said = ground.traits.repeat if ground is not None else None
    if said is False:
        return None
    if step.idempotent is not None:
        return "declared" if step.idempotent else None
    if said is True:
        return "policy"
    return facts.hints.get((step.tool_config.agent_id, step.tool_config.tool_name))


def _unknown_is_repeated(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    attempt, state = run.attempt, run.step_state
    if state is None or state.status != "running" or attempt is None:
        return ()
    if attempt.state != "unknown" or attempt.step_index != run.step_index or state.attempts >= MAX_ATTEMPTS:
        return ()
    because = _harmless(run, attempt, facts)
    repeats = _repeats(run)
    if because is None or repeats >= facts.limits.repeats:
        return ()
    at = now + _back_off(repeats, facts.limits)
    return (StepRepeating(step_index=run.step_index, attempt_index=attempt.index, because=because, at=at),)


def _repeats(run: Run) -> int:
    """How many attempts just before the newest were repeated by the engine, not by a person."""
    for count, attempt in enumerate(run.past):
        if attempt.step_index != run.step_index or attempt.state != "unknown" or attempt.retry_at is None:
            return count
    return len(run.past)


def _step_has_its_verdict(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    attempt, state = run.attempt, run.step_state
    if state is None or state.status != "running":
        return ()
    if attempt is None or attempt.step_index != run.step_index or attempt.ended_at is None:
        return ()
    if attempt.state == "done":
        return (StepCompleted(step_index=run.step_index),)
    return (StepFailed(step_index=run.step_index, attempt_index=attempt.index),)


def _failure_pauses(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    if run.step_state is None or run.step_state.status != "failed":
        return ()
    unknown = run.attempt is not None and run.attempt.state == "unknown"
    return (StepPaused(step_index=run.step_index, paused_reason="outcome_unknown" if unknown else "step_failed"),)


def _all_is_done(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    return (RunCompleted(),) if run.step is None else ()


def _approval_expires(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    expires_at = approval_expires_at(run)
    if expires_at is None or now < expires_at:
        return ()
    step = run.spec.steps[run.step_index]
    rejects = step.terms.on_expiry == "reject"
    expired = StepExpired(step_index=run.step_index, rejects=rejects)
    if not rejects or step.continues:
        return (expired,)
    message = f"Nobody decided on step {step.name!r} in time."
    return (expired, RunFailed(error_code="approval_expired", message=message))


def _approval_is_frozen(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    """Runs that came from before there were revisions wait for approval of nothing in particular, until here."""
    if run.paused_reason != "awaiting_approval" or run.status != "paused" or run.approval is not None:
        return ()
    ground = _ground(run, facts)
    return () if ground is None else (_asks(run, ground, now),)


def _approval_is_outdated(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    """What waits is asked anew where today's policies ask others, or would void it as soon as it was approved."""
    revision = run.approval
    if run.paused_reason != "awaiting_approval" or run.status != "paused":
        return ()
    ground = _ground(run, facts)
    if ground is None or revision is None or revision.state != "open":
        return ()
    voids = outdated(revision, run.spec.steps[run.step_index], ground)
    return () if voids is None else (_asks(run, ground, now, voids),)


def _hold_has_changed(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    """Nothing holds it any more, or something else does than what the run says."""
    if run.status != "paused" or run.paused_reason != "held":
        return ()
    ground = _ground(run, facts)
    if ground is None or ground.held == run.error_message:
        return ()
    return (RunResumed(paused_reason="held", by=RELEASE),) if ground.held is None else (_held(run, ground.held),)


def _held(run: Run, why: str) -> StepPaused:
    return StepPaused(step_index=run.step_index, paused_reason="held", code="held", message=why)


def _ground(run: Run, facts: Facts) -> Ground | None:
    """What stands about the current step's call."""
    config = run.spec.steps[run.step_index].tool_config
    return facts.grounds.of(config.agent_id, config.tool_name)


def _asks(run: Run, ground: Ground, now: int, voids: str | None = None) -> StepPaused:
    """The pause in which a new revision of the current step's call waits; what somebody edited stays edited, unless it
    was for another input schema."""
    old, step = run.approval, run.spec.steps[run.step_index]
    fits = old is not None and old.schema_hash in (None, ground.schema_hash)
    revision = freeze(
        step,
        step_index=run.step_index,
        number=1 if old is None else old.number + 1,
        ground=ground,
        now=now,
        edited=old.edited if old is not None and fits else None,
        edited_by=old.edited_by if old is not None and fits else None,
        attempts=_made(run),
    )
    return StepPaused(step_index=run.step_index, paused_reason="awaiting_approval", revision=revision, voids=voids)


def _made(run: Run) -> int:
    """The current step's attempts, but for one that waits to go again: under its number goes what is approved now."""
    attempt, attempts = run.attempt, run.steps[run.step_index].attempts
    again = attempt is not None and attempt.step_index == run.step_index and attempt.ended_at is None
    return attempts - again


def _forbids(run: Run, ground: Ground, now: int) -> Sequence[Event]:
    """Why the current step's call may not be intended now: the pause that it leads to. Asked before every intent."""
    index = run.step_index
    if ground.barred is not None:
        code, message = ground.barred
        return (StepPaused(step_index=index, paused_reason="agent_unauthorized", code=code, message=message),)
    step, revision = run.spec.steps[index], run.approval
    asked = revision is not None and revision.state == "open"  # what was asked once is not made without an answer
    if step.manual or ground.traits.requires_approval or asked:
        if asked:
            return (StepPaused(step_index=index, paused_reason="awaiting_approval", revision=revision),)
        if revision is None or revision.state != "approved":
            return (_asks(run, ground, now),)
        voids = _spent(run, revision, ground) or stands(revision, step, ground, run.starter)
        if voids is not None:
            return (_asks(run, ground, now, voids),)
    return () if ground.held is None else (_held(run, ground.held),)


def _spent(run: Run, revision: Revision, ground: Ground) -> str | None:
    """Why an approval that was more than a bare word is used up: for one call that may have run. Not where the engine
    repeats a harmless one by itself."""
    terms = run.spec.steps[run.step_index].terms
    if run.attempt is None or (bare_word(terms, revision.traits) and not ground.traits.requires_approval):
        return None
    since = [
        one
        for one in (run.attempt, *run.past)
        if one.step_index == run.step_index and one.index >= revision.attempts and one.state != "unsent"
    ]
    if all(one.retry_at is not None for one in since):
        return None
    return "It was called as approved and did not succeed: another call of it is approved anew."


def _unsent_again(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    attempt = run.attempt
    if attempt is None or attempt.state != "unsent" or attempt.ended_at is not None:
        return ()
    if attempt.retry_at is None or now < attempt.retry_at:
        return ()
    ground = _ground(run, facts)
    if ground is None:  # whoever holds the run finds it out
        return ()
    forbids = _forbids(run, ground, now)
    if forbids:
        return forbids
    return _not_now(run, attempt, now, facts) or (_intend(run, ground, attempt.index, now, facts),)


def _next_step(run: Run, now: int, facts: Facts) -> Sequence[Event]:
    state = run.step_state
    if run.status != "running" or state is None or run.step is None or state.status != "pending":
        return ()
    unsettled = run.unsettled
    if unsettled is not None and unsettled.retry_at is not None and now < unsettled.retry_at:
        return ()
    ground = _ground(run, facts)
    if ground is None:
        return ()
    forbids = _forbids(run, ground, now)
    if forbids:
        return forbids
    intent = _intend(run, ground, state.attempts, now, facts)
    if facts.permitted and facts.ready_for(run.step.tool_config.agent_id):
        return (intent,)
    attempt = evolve(run, intent, now).attempt
    assert attempt is not None  # noqa: S101 - an intent always leaves one
    return (intent, *_not_now(run, attempt, now, facts))


def _intend(run: Run, ground: Ground, attempt_index: int, now: int, facts: Facts) -> AttemptIntended:
    timeout_ms = run.spec.steps[run.step_index].tool_config.timeout_ms
    return AttemptIntended(
        step_index=run.step_index,
        attempt_index=attempt_index,
        req_id=make_req_id(run.id, run.nonce, run.step_index, attempt_index),
        epoch=facts.epoch,
        ack_by=now + facts.limits.ack_timeout_ms,
        deadline_at=now + timeout_ms,
        risk=ground.traits.risk,
    )


def _not_now(run: Run, attempt: Attempt, now: int, facts: Facts) -> Sequence[AttemptUnsent]:
    """What is known before the intent: that the call would not be sent. Said in the same commit, the proof cannot be
    lost with the run's holder."""
    if not facts.permitted:
        retry_at = now + facts.limits.backoff_ms
        return (AttemptUnsent(req_id=attempt.req_id, reason=NOT_PERMITTED, detail=_NOT_PERMITTED, retry_at=retry_at),)
    if facts.ready_for(run.spec.steps[attempt.step_index].tool_config.agent_id):
        return ()
    again = retry_time(attempt, now, facts.limits)
    return (AttemptUnsent(req_id=attempt.req_id, reason=GATEWAY_UNAVAILABLE, detail=_NOBODY_LISTENS, retry_at=again),)


IN_FLIGHT: tuple[Rule, ...] = (_run_time_is_up, _grace_is_over, _time_is_up, _next_step)
"""Asked while a tool may be running. ``_next_step`` would then be a defect: it is asked so that it is noticed."""

RUNNING: tuple[Rule, ...] = (
    _run_time_is_up,
    _unsent_for_good,
    _unknown_is_repeated,
    _step_has_its_verdict,
    _failure_pauses,
    _all_is_done,
    _unsent_again,
    _next_step,
)
"""Asked of a run that goes on, while no tool runs."""

STANDING: tuple[Rule, ...] = (
    _run_time_is_up,
    _unsent_for_good,
    _approval_expires,
    _approval_is_frozen,
    _approval_is_outdated,
    _hold_has_changed,
)
"""Asked of a run that waits for somebody, or is over."""


def _rules(run: Run) -> tuple[Rule, ...]:
    """Those that can speak: each step asks all of them three times over."""
    if run.in_flight:
        return IN_FLIGHT
    return RUNNING if run.status == "running" else STANDING
