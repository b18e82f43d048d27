"""One run as a value: its state, its claim, and what it has asked for under that claim. No task, no I/O.

``Actor.turn`` folds a whole inbox in one go and answers what must be committed; once it is, the host gives the actor
its new state and ``Actor.owed`` answers what is owed to the world. Between the two stands the journal: persist, then
speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from daemon import telemetry
from daemon.machine.commands import IN_MEMORY, Command, CommandId, Entry, Epoch, Letter, RunId, Urgency
from daemon.machine.decide import decide
from daemon.machine.effects import Cancel, Effect, Inquire, Invoke, deadline, effects
from daemon.machine.events import AttemptEnded, AttemptSettled, RunCreated, RunParked, StepRepeating
from daemon.machine.evolve import Happened, carry
from daemon.machine.hear import hear
from daemon.machine.needs import Facts
from daemon.machine.record import Transition, VerdictRow, record, verdict
from daemon.machine.settle import settle
from daemon.machine.state import Run
from daemon.machine.wire import read_letter

REASON_CHARS = 500
"""Most characters kept of why something failed."""

Asked = tuple[str, str, int]
"""An effect as the actor remembers it: kind, req_id, and which of its kind: how often the attempt had been proven
unsent, or which look at it."""


Caution = Literal["none", "alone", "singly"]
"""After a commit that Postgres refused: first a turn without any letter, then the letters one by one, till none is
left. So the letter that is at fault is found, and nothing else is set aside."""


@dataclass(slots=True, eq=False)
class Turn:
    """What one turn wants: perhaps a commit, and then these letters deleted; kept elsewhere first, if ``aside``."""

    actor: Actor
    transition: Transition | None
    entries: tuple[Entry, ...]
    local: tuple[Letter, ...] = ()
    """What it took of ``Actor.local``; given back if the commit is refused."""
    aside: str | None = None
    """Why the letters are set aside: the run could not take them."""

    @property
    def folded(self) -> tuple[bytes, ...]:
        """The inbox entries to delete."""
        return tuple([entry.key for entry in self.entries if entry.key != IN_MEMORY])


@dataclass(slots=True, eq=False)
class Actor:
    """A run held by this node under ``epoch`` and ``owner``. Only the host touches it."""

    run: Run
    epoch: Epoch
    owner: str
    renewed_at: float
    """Monotonic seconds of the last renewal of the lease."""
    asked: set[Asked] = field(default_factory=set)
    local: list[Letter] = field(default_factory=list)
    """Answers of our own dispatch; they need no detour through Redis."""
    mail: list[Entry] = field(default_factory=list)
    """Letters that this node heard itself; see ``strays``."""
    unread: bool = True
    """Whether its inbox in Redis may hold letters."""
    look_at: float = inf
    """When (monotonic s) to look at it though nobody rings."""
    alarm_at: float = inf
    """When (monotonic s) its alarm rings, not later than that; see ``residents``."""
    open_effects: int = 0
    """Effects under way; while any is open the run is not let go."""
    watched: bool = True
    """Whether somebody listened when it was last told what happened here, as far as known."""
    doubted: bool = False
    """Its lease had vanished, and letters perhaps with it; it stays until it has asked what became of its call."""
    busy: bool = False
    rung: Urgency | None = "c"
    """Why to look at the run; a fresh claim looks at everything."""
    quiet_since: float = 0.0
    failures: int = 0
    caution: Caution = "none"
    rests: int = 0
    """Turns that are over, their effects sent."""
    id: RunId = field(init=False)
    _owing: tuple[Run | None, tuple[Effect, ...]] = (None, ())
    """The state that ``owed`` was last asked about, and what it owed: nearly always a call is sent by that very one."""

    def __post_init__(self) -> None:
        self.id = self.run.id

    @property
    def agent_id(self) -> str | None:
        """The agent of the newest attempt."""
        attempt = self.run.attempt
        return None if attempt is None else self.run.spec.steps[attempt.step_index].tool_config.agent_id

    def turn(self, entries: Sequence[Entry], commands: Sequence[Command], now: int, facts: Facts) -> Turn:
        """Fold everything that came.

        1. Letters first: a RESULT that came before a person decided has happened before.
        2. Commands, each on the state the one before left; each gets its verdict.
        3. What therefore follows, to a fixed point.
        4. Write down what it leaves. Nothing is said to anybody yet.
        """
        now = max(now, self.run.last_at)
        letters = self._letters(entries)
        happened, verdicts, strangers = self._fold(letters, commands, now, facts)
        turn = self._closed(entries, happened, verdicts, now, authority=facts.grounds.version)
        self.local = []  # not before all went well: else the turn's repetition would not know them
        telemetry.strangers.inc(strangers)
        for letter in letters:
            telemetry.letters.labels(type(letter).__name__).inc()
        return turn

    def _fold(
        self, letters: Sequence[Letter], commands: Sequence[Command], now: int, facts: Facts
    ) -> tuple[list[Happened], list[VerdictRow], int]:
        run, happened, strangers = hear(self.run, letters, now, facts.limits)
        verdicts: list[VerdictRow] = []
        for command in commands:
            decision = decide(run, command, now, facts)
            run = carry(run, decision.events, now, happened)
            verdicts.append(verdict(command.id, decision.refusal))
        run, following = settle(run, now, facts)
        return happened + following, verdicts, strangers

    def poison(self, entries: Sequence[Entry], now: int, facts: Facts) -> dict[int, str]:
        """After a turn that raised: which of the letters do so alone, and how; none if the run does so without any."""
        if self._raises((), now, facts) is not None:
            return {}
        found = {number: self._raises((entry,), now, facts) for number, entry in enumerate(entries)}
        return {number: fault for number, fault in found.items() if fault is not None}

    def _raises(self, entries: Sequence[Entry], now: int, facts: Facts) -> str | None:
        """What a turn with these letters and no command would raise. Changes nothing."""
        try:
            now = max(now, self.run.last_at)
            happened, _, _ = self._fold(self._letters(entries), (), now, facts)
            record(self.run, happened, at=now, epoch=self.epoch, owner=self.owner)
        except Exception as fault:  # noqa: BLE001 - that is the question
            return f"{type(fault).__name__}: {fault}"[:REASON_CHARS]
        return None

    def park(self, entries: Sequence[Entry], commands: Sequence[CommandId], now: int, message: str) -> Turn:
        """The turn that stops a run whose own turn keeps failing; a person may resume it. Its letters stay.

        A run that stands still already cannot be stopped: there it was the letters, which are set aside, or the
        commands, which are refused; else each sweep would bring them again.
        """
        if self.run.status == "running":
            now = max(now, self.run.last_at)
            happened: list[Happened] = []
            run = self.run
            if run.started_at is None:  # else its log began with a pause, and no resume could set it going
                run = carry(
                    run, (RunCreated(title=run.spec.title, steps=len(run.steps), by=run.user_id),), now, happened
                )
            carry(run, (RunParked(step_index=run.step_index, message=message),), now, happened)
            turn = self._closed((), happened, [], now)
        else:
            refused = [VerdictRow(command, False, "engine_interrupted", message) for command in commands]
            turn = replace(self._closed(entries, [], refused, max(now, self.run.last_at)), aside=message)
        self.local = []
        return turn

    def _letters(self, entries: Sequence[Entry]) -> list[Letter]:
        letters = self.local.copy()
        for _, raw, mark, read in entries:
            letter = read if read is not None else read_letter(raw, mark)
            if letter is not None:
                letters.append(letter)
        return letters

    def _closed(
        self,
        entries: Sequence[Entry],
        happened: Sequence[Happened],
        verdicts: Sequence[VerdictRow],
        now: int,
        authority: int | None = None,
    ) -> Turn:
        if not happened and not verdicts:
            return Turn(self, None, tuple(entries), tuple(self.local))
        transition = record(
            self.run, happened, at=now, epoch=self.epoch, owner=self.owner, verdicts=verdicts, authority=authority
        )
        for event, _ in happened:
            if isinstance(event, AttemptEnded):
                telemetry.attempts_ended.labels(event.outcome).inc()
            elif isinstance(event, AttemptSettled):
                telemetry.attempts_settled.labels(event.outcome).inc()
            elif isinstance(event, StepRepeating):
                telemetry.repeats.labels(event.because).inc()
        if transition.run.terminal and not self.run.terminal:
            telemetry.runs_ended.labels(transition.run.status).inc()
        return Turn(self, transition, tuple(entries), tuple(self.local))

    def owed(self, now: int) -> list[Effect]:
        """Effects owed at ``now`` and not asked for yet under this claim; each is answered once."""
        fresh = []
        owed = effects(self.run, self.epoch, now)
        self._owing = (self.run, owed)
        for effect in owed:
            key = self.key(effect)
            if key not in self.asked:
                self.asked.add(key)
                fresh.append(effect)
        return fresh

    def still_owes(self, effect: Effect, now: int) -> bool:
        """Whether the state still owes exactly this effect."""
        run, owed = self._owing
        if run is self.run and isinstance(effect, Invoke):  # which does not depend on the time
            return effect in owed
        return effect in effects(self.run, self.epoch, now)

    def key(self, effect: Effect) -> Asked:
        match effect:
            case Invoke():
                return ("invoke", effect.req_id, effect.tries)
            case Inquire():
                return ("inquire", effect.req_id, effect.look)
            case Cancel():
                return ("cancel", effect.req_id, 0)

    def ask_again(self) -> Inquire | None:
        """After a gap in what we heard: what became of the attempt in flight?"""
        attempt = self.run.attempt if self.run.in_flight else self.run.unsettled
        return Inquire(req_id=attempt.req_id, look=0) if attempt is not None else None

    def deadline(self, now: int) -> int | None:
        """When (epoch ms, after ``now``) to look again though nobody spoke."""
        return deadline(self.run, now)
