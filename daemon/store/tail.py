"""The tail of a run: commits that its log has and its rows have not yet.

A commit writes a page of the log and what it changes of the run's row, steps and attempts. Where one run alone takes
quick steps, most of its commits are *appended*: the page alone is written, which names the changes, one INSERT. Rows
follow at a *checkpoint*: each ``CHECKPOINT_EVERY`` commits, at whatever is more than going on, and, by a trigger, when
the run pauses for breath (``CHECKPOINT_AFTER_S``) or changes hands (``schema/0024``). It is what databases do with
their own logs.

``journal`` keeps the tail of one run at most, ``commit`` writes it, ``runs`` reads a run beyond its rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from daemon.machine.record import LOG_PREVIEW_CHARS, AttemptRow, StepRow, Transition
from daemon.machine.state import Run

QUICK_S = 0.1
"""Longest time between two commits of a run that takes quick steps."""
CHECKPOINT_EVERY = 9
"""Commits of a run that takes quick steps: one of so many writes the rows. So runs of 10, 100 and 1,000 steps have as
many checkpoints a step."""
CHECKPOINT_AFTER_S = 0.2
"""For how long rows may stay behind a run that has stopped taking quick steps."""
CHANGES_BYTES = 16_384
"""Most that a page says of changes. What is larger is written once, to the rows."""


class Changes(Struct, frozen=True, gc=False):
    """What a page that was appended changes of steps and attempts, and the step that the run is at."""

    step_index: int
    steps: tuple[StepRow, ...]
    attempts: tuple[AttemptRow, ...]


Attempts: TypeAlias = "dict[tuple[int, int], AttemptRow]"
"""By the index of the step and of the attempt."""

_encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Changes).decode
"""The changes that a page (JSON) names. Raises msgspec.DecodeError."""


class Tail:
    """Of the run that ``last`` was committed of, alone. Nothing is in it right after a checkpoint."""

    def __init__(self, last: Transition, at: float) -> None:
        """``last`` was written to the rows, at ``at`` (monotonic s)."""
        self.last = last
        self.at = at
        self.page = last.events[0].seq
        """The first seq of the newest page."""
        self.written_seq = last.run.last_seq
        """How far the rows go."""
        self._appended = 0
        self._beside = _beside(last.run)
        self._steps: dict[int, StepRow] = {}
        self._attempts: Attempts = {}

    @property
    def empty(self) -> bool:
        return not self._appended

    def precedes(self, one: Transition) -> bool:
        """Whether ``one`` was made of the state that this ends with, under the same claim."""
        last = self.last
        return (
            one.run_id == last.run_id
            and one.epoch == last.epoch
            and one.owner == last.owner
            and one.expected_seq == last.run.last_seq
        )

    def changes(self, one: Transition, at: float) -> str | None:
        """What a page says of it, if it may be appended; None: its rows are to be written, with these.

        What Postgres would refuse in a row must be refused now, while it is known whose letter is at fault.
        """
        if self._appended + 1 == CHECKPOINT_EVERY or at - self.at > QUICK_S or not self.precedes(one):
            return None
        if not one.events or one.verdicts or one.approvals or one.run.status != "running":
            return None
        if _beside(one.run) != self._beside:
            return None
        if not all(row.exit_code is None or -(2**63) <= row.exit_code < 2**63 for row in one.attempts):
            return None
        told = _encode(Changes(one.run.step_index, one.steps, one.attempts))
        return told.decode() if len(told) <= CHANGES_BYTES and b"\\u0000" not in told else None

    def append(self, one: Transition, at: float) -> None:
        """It was, at ``at`` (monotonic s)."""
        self._appended += 1
        self.last, self.at, self.page = one, at, one.events[0].seq
        self._steps |= {step.step_index: step for step in one.steps}
        join(self._attempts, one.attempts)

    def carried_by(self, one: Transition) -> Transition:
        """``one`` with the rows of this tail: each step as it is last, each attempt as all of it leaves it."""
        steps = self._steps | {step.step_index: step for step in one.steps}
        attempts = self._attempts.copy()
        join(attempts, one.attempts)
        return replace(one, steps=tuple(steps.values()), attempts=tuple(attempts.values()))

    def written(self) -> None:
        """The rows have all of it."""
        self.written_seq, self._appended = self.last.run.last_seq, 0
        self._steps, self._attempts = {}, {}


def join(attempts: Attempts, rows: Iterable[AttemptRow]) -> None:
    """Add rows to those before them, each attempt as one row, as the commit's ON CONFLICT does it."""
    for row in rows:
        place = row.attempt.step_index, row.attempt.index
        before = attempts.get(place)
        attempts[place] = row if before is None else _joined(before, row)


def _joined(before: AttemptRow, after: AttemptRow) -> AttemptRow:
    log = (before.log_tail or "") + (after.log_tail or "")
    return AttemptRow(
        after.attempt,
        after.arguments if before.arguments is None else before.arguments,
        before.error if after.error is None else after.error,
        before.exit_code if after.exit_code is None else after.exit_code,
        before.result if after.result is None else after.result,
        log[-LOG_PREVIEW_CHARS:] or None,
    )


def _beside(run: Run) -> tuple[object, ...]:
    """The columns of the run's row that no page names: none of them may change by what is appended."""
    paused = run.status, run.paused_reason, run.paused_seq
    return (*paused, run.started_at, run.finished_at, run.error_code, run.error_message)
