"""Given, when, then over the machine alone: a run, a clock, and what a turn does, without any of the other rooms.

A ``Story`` is given steps; ``say`` is a person's command, ``hear`` are a Gateway's letters, ``wait`` lets the clock go
on with a turn at each alarm, ``takeover`` claims the run anew. Every turn is checked against the laws that hold for all
stories (``_check``), so a test states only what is special in its own. Used by ``tests/machine`` and ``tests/golden``;
does no I/O.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import orjson

from daemon.machine.commands import (
    Acked,
    CancelAcked,
    Chunk,
    Command,
    CommandId,
    CommandKind,
    Epoch,
    Letter,
    Mark,
    NotSent,
    ReqId,
    Result,
    RunId,
    Sent,
)
from daemon.machine.decide import decide
from daemon.machine.decision import Refusal
from daemon.machine.effects import Cancel, Effect, Inquire, Invoke, Passive, deadline, effects, run_deadline
from daemon.machine.events import AttemptEnded, Event, RunParked
from daemon.machine.evolve import Happened, carry, evolve
from daemon.machine.hear import LOG_EVENT_BYTES, hear
from daemon.machine.needs import Facts, Hint, needs
from daemon.machine.record import Transition, VerdictRow, record, verdict
from daemon.machine.settle import settle
from daemon.machine.spec import WorkflowSpec, parse_spec
from daemon.machine.state import Attempt, Limits, Run, make_req_id, new_run
from tests.machine.grounds import Said

START = 1_800_000_000_000
"""The first moment of every story, epoch ms: 2027-01-15T08:00:00Z."""
RUN_ID = RunId(UUID("01990000-0000-7000-8000-000000000001"))
WORKFLOW_ID = UUID("01990000-0000-7000-8000-0000000000aa")
NONCE = bytes(range(16))
LAST_WORDS = {"run.completed", "run.failed", "run.canceled"}


def step(
    name: str = "a",
    *,
    manual: bool = False,
    goes_on: bool = False,
    timeout_ms: int = 60_000,
    idempotent: bool | None = None,
    **approval: Any,
) -> dict[str, Any]:
    """The JSON of one step, called and identified by ``name``; its tool is ``demo__<name>`` on agent-1. ``approval``:
    the terms under which it is approved."""
    return (
        {
            "id": name,
            "name": f"Step {name}",
            "tool_config": {
                "agent_id": "agent-1",
                "tool_name": f"demo__{name}",
                "arguments": {"n": 1},
                "timeout_ms": timeout_ms,
            },
            "approval_policy": "manual" if manual else "auto",
            "on_error": "continue" if goes_on else "stop",
        }
        | ({} if idempotent is None else {"idempotent": idempotent})
        | ({"approval": approval} if approval else {})
    )


def spec(*steps: dict[str, Any], **more: Any) -> WorkflowSpec:
    """A workflow of these steps; of one plain step without any. ``more`` are fields of the spec."""
    return parse_spec({"title": "A story", "steps": list(steps or (step(),))} | more)


def acked(req_id: ReqId, *, accepted: bool = True) -> Acked:
    return Acked(req_id=req_id, accepted=accepted, reason=None if accepted else "invalid_payload")


def done(req_id: ReqId, result: Any = None) -> Result:
    return Result(req_id=req_id, ok=True, result=result)


def failed(req_id: ReqId, code: str = "tool_call_failed", message: str = "it broke") -> Result:
    return Result(req_id=req_id, ok=False, error_code=code, error_message=message)


def canceled(req_id: ReqId) -> Result:
    return Result(req_id=req_id, ok=False, canceled=True, error_code="canceled", error_message="canceled")


def chunk(
    req_id: ReqId, data: str, *, channel: str = "stdout", number: int | None = None, dropped: tuple[int, int] = (0, 0)
) -> Chunk:
    """A CHUNK; ``number`` is its place in term 1 of its ingest, ``dropped`` are (bytes, lines)."""
    mark = None if number is None else Mark(1, number)
    return Chunk(
        req_id=req_id, channel=channel, data=data, dropped_bytes=dropped[0], dropped_lines=dropped[1], mark=mark
    )


def passive(run: Run) -> Passive | None:
    """What the rows of a run tell of it while nobody holds it; None when it has called no tool yet."""
    attempt = run.attempt
    if attempt is None:
        return None
    return Passive(
        status=run.status,
        paused_reason=run.paused_reason,
        ends_at=run_deadline(run),
        req_id=attempt.req_id,
        current=attempt.step_index == run.step_index,
        state=attempt.state,
        intended_at=attempt.intended_at,
        deadline_at=attempt.deadline_at,
        canceling=attempt.canceling,
    )


class Story:
    """One run with its clock, its log and everything its turns recorded."""

    def __init__(
        self,
        *steps: dict[str, Any],
        workflow: WorkflowSpec | None = None,
        run_id: RunId = RUN_ID,
        nonce: bytes = NONCE,
        user: str = "ann",
        token_maker: str | None = None,
        spec_maker: str | None = None,
        at: int = START,
        limits: Limits | None = None,
        listening: bool = True,
        hints: Mapping[tuple[str, str], Hint] | None = None,
        grounds: Said | None = None,
        started: bool = True,
    ) -> None:
        """``listening``: somebody is subscribed to the Gateway. ``hints``: what tools say of themselves. ``grounds``:
        what stands about calls.
        ``started``: the start command was given already.
        """
        self.limits = limits or Limits()
        self.listening, self.permitted = listening, True
        self.hints = dict(hints or {})
        self.grounds = grounds or Said()
        self.epoch = Epoch(1)
        self.now = at
        self.run = self._replayed = new_run(
            run_id=run_id,
            workflow_id=WORKFLOW_ID,
            user_id=user,
            nonce=nonce,
            spec=workflow or spec(*steps),
            last_at=at,
            token_maker=token_maker,
            spec_maker=spec_maker,
        )
        self.newborn: Run = self.run
        self.log: list[tuple[int, Event]] = []
        """Every event with its time."""
        self.transitions: list[Transition] = []
        self.strangers = 0
        self._verdicts: Counter[str] = Counter()
        self._over = False
        self._command_numbers = itertools.count(1)
        if started:
            self.say("start")

    # --- when -------------------------------------------------------------------------------------------------------

    def say(self, kind: CommandKind, **about: Any) -> Refusal | None:
        """One command in a turn of its own; its refusal, or None when it was applied."""
        return self.turn(commands=[self.command(kind, **about)])[0]

    def hear(self, *letters: Letter) -> list[Event]:
        """These letters in one turn; the events they led to."""
        before = len(self.log)
        self.turn(letters=letters)
        return [event for _, event in self.log[before:]]

    def wait(self, ms: int) -> None:
        """Nobody speaks for ``ms``: a turn at each alarm on the way."""
        until = self.now + ms
        for _ in range(100_000):
            alarm = deadline(self.run, self.now)
            if alarm is None or alarm > until:
                self.now = until
                return
            self.now = max(self.now, alarm)
            self.turn()
        raise AssertionError("the run never becomes quiet")

    def takeover(self) -> None:
        """Another node (or the same one, restarted) claims the run: a new epoch, and a turn."""
        self.epoch = Epoch(self.epoch + 1)
        self.turn()

    def turn(self, letters: Sequence[Letter] = (), commands: Sequence[Command] = ()) -> list[Refusal | None]:
        """What an actor's turn does: hear the letters, decide each command, settle, record. The refusals come back."""
        before = self.run
        run, happened, strangers = hear(before, letters, self.now, self.limits)
        self.strangers += strangers
        refusals: list[Refusal | None] = []
        for command in commands:
            decision = decide(run, command, self.now, self.facts)
            refusals.append(decision.refusal)
            assert not (decision.refusal and decision.events), "a refusal that does something"
            run = carry(run, decision.events, self.now, happened)
        run, following = settle(run, self.now, self.facts)
        self._commit(
            before,
            [*happened, *following],
            [verdict(command.id, refusal) for command, refusal in zip(commands, refusals, strict=True)],
        )
        assert self.run == run, "record's run is not the folded run"
        return refusals

    def _commit(self, before: Run, happened: Sequence[Happened], verdicts: Sequence[VerdictRow]) -> None:
        events = [event for event, _ in happened]
        transition = record(before, happened, at=self.now, epoch=self.epoch, owner="me", verdicts=verdicts)
        self.run = transition.run
        self.log += [(self.now, event) for event in events]
        self.transitions.append(transition)
        self._check(before, events, transition)

    def park(self) -> None:
        """What the host does to a run whose own turn raises again and again."""
        happened: list[Happened] = []
        carry(self.run, [RunParked(step_index=self.run.step_index, message="the turn raised")], self.now, happened)
        self._commit(self.run, happened, [])

    # --- then -------------------------------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        return Facts(
            epoch=self.epoch,
            gateway_ready=self.listening,
            permitted=self.permitted,
            limits=self.limits,
            grounds=self.grounds,
            hints=self.hints,
        )

    @property
    def attempt(self) -> Attempt:
        """The newest attempt."""
        assert self.run.attempt is not None, "nothing was attempted yet"
        return self.run.attempt

    @property
    def req(self) -> ReqId:
        """The ``req_id`` of the newest attempt."""
        return self.attempt.req_id

    @property
    def owed(self) -> tuple[Effect, ...]:
        """What the present owner owes the world."""
        return effects(self.run, self.epoch, self.now)

    @property
    def statuses(self) -> tuple[str, ...]:
        """The status of each step."""
        return tuple(state.status for state in self.run.steps)

    @property
    def types(self) -> list[str]:
        """The wire types of all events so far."""
        return [event.type for _, event in self.log]

    def rows(self, event_type: str | None = None) -> list[dict[str, Any]]:
        """The payloads of all events so far, or of those of one type."""
        rows = (row for transition in self.transitions for row in transition.events)
        return [orjson.loads(row.payload) for row in rows if event_type in (None, row.event_type)]

    def command(
        self, kind: CommandKind, *, by: str = "ann", seen: int | None = None, step_id: str | None = None, **more: Any
    ) -> Command:
        """A command of somebody who sees the run as it stands, unless told otherwise."""
        if seen is None and self.run.status == "paused" and kind not in ("start", "cancel"):
            seen = self.run.paused_seq
        if step_id is None and self.run.step is not None and kind in ("approve", "reject", "skip", "mark_done"):
            step_id = self.run.step.id
        number = CommandId(UUID(int=next(self._command_numbers)))
        return Command(id=number, kind=kind, seen_seq=seen, issued_by=by, step_id=step_id, **more)

    def succeed(self, result: Any = None) -> list[Event]:
        """The agent acknowledges the newest attempt and answers with ``result``."""
        return self.hear(Sent(req_id=self.req), acked(self.req), done(self.req, result))

    def fail(self) -> list[Event]:
        """The agent acknowledges the newest attempt and answers that the tool failed."""
        return self.hear(Sent(req_id=self.req), acked(self.req), failed(self.req))

    def bounce(self, reason: str = "agent_offline") -> list[Event]:
        """The newest call is proven unsent."""
        return self.hear(NotSent(req_id=self.req, tries=self.attempt.tries, reason=reason, detail="no agent saw it"))

    def confirm_cancel(self, *, will_cancel: bool = True) -> list[Event]:
        """The agent answers the CANCEL of the newest attempt."""
        return self.hear(CancelAcked(req_id=self.req, will_cancel=will_cancel))

    # --- always -----------------------------------------------------------------------------------------------------

    def _check(self, before: Run, events: Sequence[Event], transition: Transition) -> None:
        """The laws of every turn of every story."""
        run = self.run
        assert transition.expected_seq == before.last_seq
        assert [row.seq for row in transition.events] == list(range(before.last_seq + 1, run.last_seq + 1))
        for event in events:
            self._replayed = evolve(self._replayed, event, self.now)
        assert self._replayed == run, "replaying the log does not rebuild the run"
        assert settle(run, self.now, self.facts) == (run, []), "settle left something to say"
        for event in events:
            assert not self._over or event.type.startswith("tool."), f"{event.type} after the end"
            self._over = self._over or event.type in LAST_WORDS
            if isinstance(event, AttemptEnded):
                self._verdicts[event.req_id] += 1
                assert self._verdicts[event.req_id] == 1, "a second verdict on one attempt"
        assert self._over == run.terminal
        if before.terminal:
            assert (run.status, run.steps, run.step_index) == (before.status, before.steps, before.step_index)
        self._check_rows(before, transition)
        self._check_duties()

    def _check_rows(self, before: Run, transition: Transition) -> None:
        """Every change of a step or an attempt has its row, and no payload outgrows its bound."""
        changed = {i for i, (old, new) in enumerate(zip(before.steps, self.run.steps, strict=True)) if old != new}
        assert {row.step_index for row in transition.steps} == changed
        kept = {attempt.req_id: attempt for attempt in _attempts(before)}
        moved = {attempt.req_id for attempt in _attempts(self.run) if kept.get(attempt.req_id) != attempt}
        assert moved <= {row.attempt.req_id for row in transition.attempts}
        for row in transition.events:
            told = orjson.loads(row.payload)
            assert told["type"] == row.event_type
            assert told["run_id"] == str(self.run.id)
            assert len(told.get("result_preview") or "") <= 800
            assert len(told.get("data", "").encode()) <= LOG_EVENT_BYTES

    def _check_duties(self) -> None:
        """Alarm and effects agree with the state, for the owner and for whoever comes after."""
        run, alarm = self.run, deadline(self.run, self.now)
        assert alarm is None or alarm > self.now, "an alarm in the past rings for ever"
        assert not any(attempt.in_flight for attempt in run.past), "two attempts in flight"
        later = effects(run, Epoch(self.epoch + 1), self.now)
        assert not any(isinstance(effect, Invoke) for effect in (*effects(run, Epoch(0), self.now), *later))
        if not run.in_flight:
            assert self.owed == later
            assert bool(self.owed) == (run.unsettled is not None)
            return
        assert alarm is not None, "in flight, and nobody will look again"
        assert any(isinstance(effect, Inquire) for effect in later)
        assert self.req == make_req_id(run.id, run.nonce, self.attempt.step_index, self.attempt.index)
        assert any(isinstance(effect, Cancel) for effect in self.owed) == (self.attempt.canceling is not None)
        assert run.spec.steps[self.attempt.step_index].tool_config.agent_id in needs(run).agents or run.terminal


def _attempts(run: Run) -> Iterator[Attempt]:
    if run.attempt is not None:
        yield run.attempt
    yield from run.past
