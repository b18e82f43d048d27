"""What ``decide`` answers, and what every decision asks first: is it about the pause and the step that stand?"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from daemon.machine.commands import Command
from daemon.machine.events import Event
from daemon.machine.state import Run


class Refusal(Struct, frozen=True, gc=False):
    """Why a command does nothing: a stable code and a sentence that says what to do."""

    code: str
    message: str


class Decision(Struct, frozen=True, gc=False):
    """``events`` when applied (perhaps none: it was so already), or ``refusal``."""

    events: Sequence[Event] = ()
    refusal: Refusal | None = None


def not_at_that_pause(run: Run, command: Command) -> Refusal | None:
    if run.status != "paused":
        return Refusal("not_paused", f"The run is {run.status}, not paused.")
    if command.seen_seq != run.paused_seq:
        message = "The run has moved since you looked: it went on and paused again. Read it, then decide."
        return Refusal("pause_changed", message)
    return None


def not_that_step(run: Run, command: Command) -> Refusal | None:
    step = run.spec.steps[run.step_index]
    if command.step_id != step.id:
        return Refusal("wrong_step", f"The step that waits is {step.id!r}, not {command.step_id!r}.")
    return None
