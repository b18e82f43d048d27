"""``decide``: what a person's command does to a run: events, or a refusal with its reason. A literal table by kind.

A command is decided on the pause its author saw (``seen_seq``); at another pause it is refused, so nobody approves a
step unseen and of two people pressing at once exactly one wins. Cancel alone needs no pause. What people say of a call
that waits for approval is decided in ``decide_approval``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from daemon.machine.commands import Command, CommandKind
from daemon.machine.decide_approval import approve, edit, reject, resumed
from daemon.machine.decision import Decision, Refusal, not_at_that_pause, not_that_step
from daemon.machine.events import (
    COMMITS_LOST,
    RunCanceled,
    RunCreated,
    RunResumed,
    StepMarkedDone,
    StepSkipped,
)
from daemon.machine.needs import Facts
from daemon.machine.state import MAX_ATTEMPTS, Run


def decide(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    """The one decision on ``command`` at ``now`` (epoch ms)."""
    return TABLE[command.kind](run, command, now, facts)


def _start(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    if run.started_at is not None or run.terminal:
        return Decision()
    return Decision((RunCreated(title=run.spec.title, steps=len(run.steps), by=command.issued_by),))


def _cancel(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    if run.terminal:
        return Decision()
    until = now + facts.limits.cancel_grace_ms
    return Decision((RunCanceled(reason=command.reason, by=command.issued_by, until=until, who=command.who),))


def _skip(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    refusal = not_at_that_pause(run, command) or _not_that_failure(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    return Decision(
        (StepSkipped(step_index=run.step_index, by=command.issued_by, reason=command.reason, who=command.who),)
    )


def _mark_done(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    refusal = not_at_that_pause(run, command) or _not_that_failure(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    if command.note is None or not command.note.strip():
        message = "Say in a note what you saw: it stands in the log as the evidence that the step is done."
        return Decision(refusal=Refusal("note_required", message))
    return Decision(
        (StepMarkedDone(step_index=run.step_index, by=command.issued_by, note=command.note, who=command.who),)
    )


def _resume(run: Run, command: Command, now: int, facts: Facts) -> Decision:
    refusal = not_at_that_pause(run, command)
    if refusal is not None:
        return Decision(refusal=refusal)
    if run.paused_reason == "awaiting_approval":
        return resumed(run, command, now, facts)
    if run.paused_reason == "held":
        return Decision(
            refusal=Refusal("held", run.error_message or "A hold keeps it; its release lets the run go on.")
        )
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
    return Decision((RunResumed(paused_reason=run.paused_reason, by=command.issued_by, who=command.who),))


def _not_that_failure(run: Run, command: Command) -> Refusal | None:
    """What has failed, or may have run, can be left behind; what waits for approval is approved or rejected."""
    if run.paused_reason == "awaiting_approval":
        return Refusal("awaiting_approval", "The step waits for approval: approve it or reject it.")
    if run.paused_reason not in ("step_failed", "outcome_unknown"):
        return Refusal("not_failed", f"The run is paused as {run.paused_reason}; resume it first.")
    return not_that_step(run, command)


TABLE: Mapping[CommandKind, Callable[[Run, Command, int, Facts], Decision]] = {
    "start": _start,
    "approve": approve,
    "reject": reject,
    "edit": edit,
    "resume": _resume,
    "skip": _skip,
    "mark_done": _mark_done,
    "cancel": _cancel,
}
