"""``decide``: what a person's command does to a run: events, or a refusal with its reason. A literal table by kind.

A command is decided on the pause its author saw (``seen_seq``); at another pause it is refused, so nobody approves a
step unseen and of two people pressing at once exactly one wins. Cancel alone needs no pause.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from daemon.machine.commands import Command, CommandKind
from daemon.machine.events import (
    COMMITS_LOST,
    Event,
    RunCanceled,
    RunCreated,
    RunFailed,
    RunResumed,
    StepApproved,
    StepMarkedDone,
    StepRejected,
    StepSkipped,
)
from daemon.machine.state import MAX_ATTEMPTS, Limits, Run


class Refusal(Struct, frozen=True, gc=False):
    """Why a command does nothing: a stable code and a sentence that says what to do."""

    code: str
    message: str


class Decision(Struct, frozen=True, gc=False):
    """``events`` when applied (perhaps none: it was so already), or ``refusal``."""

    events: Sequence[Event] = ()
    refusal: Refusal | None = None


def decide(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    """The one decision on ``command`` at ``now`` (epoch ms)."""
    return TABLE[command.kind](run, command, now, limits)


def _start(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    if run.started_at is not None or run.terminal:
        return Decision()
    return Decision((RunCreated(title=run.spec.title, steps=len(run.steps), by=command.issued_by),))


def _cancel(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    if run.terminal:
        return Decision()
    until = now + limits.cancel_grace_ms
    return Decision((RunCanceled(reason=command.reason, by=command.issued_by, until=until),))


def _approve(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    refusal = _not_at_that_pause(run, command) or _not_that_approval(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    return Decision((StepApproved(step_index=run.step_index, by=command.issued_by),))


def _reject(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    refusal = _not_at_that_pause(run, command) or _not_that_approval(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    rejected = StepRejected(step_index=run.step_index, by=command.issued_by, reason=command.reason)
    step = run.spec.steps[run.step_index]
    if step.continues:
        return Decision((rejected,))
    # The run ends with the rejection, not at the turn's end: the next command of the same turn must see it over.
    return Decision((rejected, RunFailed(error_code="approval_rejected", message=f"Step {step.name!r} was rejected.")))


def _skip(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    refusal = _not_at_that_pause(run, command) or _not_that_failure(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    return Decision((StepSkipped(step_index=run.step_index, by=command.issued_by, reason=command.reason),))


def _mark_done(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    refusal = _not_at_that_pause(run, command) or _not_that_failure(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    if not command.note:
        message = "Say in a note what you saw: it stands in the log as the evidence that the step is done."
        return Decision(refusal=Refusal("note_required", message))
    return Decision((StepMarkedDone(step_index=run.step_index, by=command.issued_by, note=command.note),))


def _resume(run: Run, command: Command, now: int, limits: Limits) -> Decision:
    refusal = _not_at_that_pause(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    if run.paused_reason == "awaiting_approval":
        return Decision((StepApproved(step_index=run.step_index, by=command.issued_by),))
    if run.paused_reason == "outcome_unknown" and command.confirm != "run_again":
        message = (
            "The tool may have run already. Look at its effects; then skip the step, mark it done, or resume with"
            ' {"confirm": "run_again"}.'
        )
        return Decision(refusal=Refusal("confirm_required", message))
    if run.error_code == COMMITS_LOST and command.confirm != "run_again":
        message = (
            "The database lost what this run did last, so its next steps may be done already. "
            'Look at their effects, then resume with {"confirm": "run_again"}.'
        )
        return Decision(refusal=Refusal("confirm_required", message))
    state = run.step_state
    if state is not None and state.status == "failed" and state.attempts >= MAX_ATTEMPTS:
        message = f"The step was attempted {MAX_ATTEMPTS} times. Cancel this run and start another."
        return Decision(refusal=Refusal("attempts_exhausted", message))
    assert run.paused_reason is not None  # noqa: S101 - a paused run has its reason
    return Decision((RunResumed(paused_reason=run.paused_reason, by=command.issued_by),))


def _not_at_that_pause(run: Run, command: Command) -> Refusal | None:
    if run.status != "paused":
        return Refusal("not_paused", f"The run is {run.status}, not paused.")
    if command.seen_seq != run.paused_seq:
        message = "The run has moved since you looked: it went on and paused again. Read it, then decide."
        return Refusal("pause_changed", message)
    return None


def _not_that_approval(run: Run, command: Command) -> Refusal | None:
    if run.paused_reason != "awaiting_approval":
        return Refusal(
            "not_awaiting_approval", f"The run is paused as {run.paused_reason}; nothing waits for approval."
        )
    return _not_that_step(run, command)


def _not_that_failure(run: Run, command: Command) -> Refusal | None:
    """What has failed, or may have run, can be left behind; what waits for approval is approved or rejected."""
    if run.paused_reason == "awaiting_approval":
        return Refusal("awaiting_approval", "The step waits for approval: approve it or reject it.")
    if run.paused_reason not in ("step_failed", "outcome_unknown"):
        return Refusal("not_failed", f"The run is paused as {run.paused_reason}; resume it first.")
    return _not_that_step(run, command)


def _not_that_step(run: Run, command: Command) -> Refusal | None:
    step = run.spec.steps[run.step_index]
    if command.step_id != step.id:
        return Refusal("wrong_step", f"The step that waits is {step.id!r}, not {command.step_id!r}.")
    return None


TABLE: Mapping[CommandKind, Callable[[Run, Command, int, Limits], Decision]] = {
    "start": _start,
    "approve": _approve,
    "reject": _reject,
    "resume": _resume,
    "skip": _skip,
    "mark_done": _mark_done,
    "cancel": _cancel,
}
