"""The rows of a run, as the simulation's Postgres keeps them, with the history that the checkers go by."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import asdict, replace

from daemon.machine.commands import Command, ReqId
from daemon.machine.record import ApprovalRow, EventRow, StepRow, Transition, VerdictRow, revision_of
from daemon.machine.state import PAST_KEPT, Attempt, Run, StepState, new_run
from daemon.store.tail import Changes


@dataclass(slots=True)
class CommandRow:
    """A command, when it was written (epoch ms), and every verdict that passed the fence, with its transition."""

    command: Command
    created_at: int
    verdicts: list[tuple[VerdictRow, Transition]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Intent:
    """A call that was intended by a commit: by which version of the authority it was decided, and which stood."""

    req_id: ReqId
    step_index: int
    arguments: str
    named: int | None
    standing: int
    at: float
    """By ``Postgres.moment``."""


@dataclass(slots=True)
class RunRow:
    """The hot row and what hangs on it. ``head`` carries the columns; its steps and attempts are not looked at."""

    head: Run
    epoch: int = 0
    owner: str | None = None
    wake_at: int | None = None
    recoveries: int = 0
    last_at: int = 0
    steps: dict[int, StepRow] = field(default_factory=dict)
    attempts: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    log: list[tuple[EventRow, int]] = field(default_factory=list)
    moments: dict[int, float] = field(default_factory=dict)
    """When each seq was committed, by ``Postgres.moment``."""
    approvals: dict[tuple[int, int], list[tuple[float, ApprovalRow]]] = field(default_factory=dict)
    """Each revision of each step as it was written, each time, and when; the last one is the row."""
    tail: list[tuple[Transition, Changes]] = field(default_factory=list)
    """What was appended to the log and is not in head, steps and attempts yet."""
    intents: list[Intent] = field(default_factory=list)
    commands: list[CommandRow] = field(default_factory=list)

    @property
    def last_seq(self) -> int:
        """How far the log goes."""
        return self.tail[-1][0].run.last_seq if self.tail else self.head.last_seq

    def checkpoint(self) -> None:
        """Write the tail, as the trigger does when the run changes hands."""
        for one, changes in self.tail:
            self.head, self.last_at = one.run, one.at
            self.steps.update({step.step_index: step for step in changes.steps})
            self.attempts.update({(a.attempt.step_index, a.attempt.index): a.attempt for a in changes.attempts})
        self.tail = []

    def read(self) -> Run:
        """The run, from its rows alone."""
        steps = list(new_run_like(self.head).steps)
        for row in self.steps.values():
            steps[row.step_index] = _step_state(row)
        newest = [self.attempts[place] for place in sorted(self.attempts, reverse=True)[: PAST_KEPT + 1]]
        newest_revision = max(self.approvals, default=None)
        return replace(
            self.head,
            steps=tuple(steps),
            revision=None if newest_revision is None else revision_of(self.approvals[newest_revision][-1][1]),
            attempt=newest[0] if newest else None,
            past=tuple(newest[1:]),
            last_at=self.last_at,
        )


def new_run_like(run: Run) -> Run:
    """The same run before anything happened to it."""
    return new_run(
        run_id=run.id,
        workflow_id=run.workflow_id,
        user_id=run.user_id,
        nonce=run.nonce,
        spec=run.spec,
        groups=run.groups,
        admin=run.admin,
        token_maker=run.token_maker,
        spec_maker=run.spec_maker,
    )


def _step_state(row: StepRow) -> StepState:
    columns = asdict(row)
    del columns["step_index"], columns["step_id"]
    return StepState(**{name.removesuffix("_ms"): value for name, value in columns.items()})
