"""The literal tables are closed and consistent, and no event is forgotten by ``evolve`` or ``payload``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import orjson
import pytest
from msgspec.structs import fields, replace

from daemon.machine import state, wire
from daemon.machine.approval import Difference, Vote, freeze
from daemon.machine.commands import CommandKind, Epoch, Mark, Who
from daemon.machine.decide import TABLE
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
    Outcome,
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
from daemon.machine.evolve import evolve
from daemon.machine.ground import Ground
from daemon.machine.state import ATTEMPT_MOVES, IN_FLIGHT, RUN_MOVES, STEP_MOVES, TERMINAL, IllegalMove, Run
from tests.machine.scenario import START, Story, canceled, step

TABLES: dict[str, tuple[Mapping[Any, frozenset[Any]], Any, str]] = {
    "run": (RUN_MOVES, state.RunStatus, "running"),
    "step": (STEP_MOVES, state.StepStatus, "pending"),
    "attempt": (ATTEMPT_MOVES, state.AttemptState, "intent"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_every_status_and_no_other(name: str) -> None:
    moves, statuses, _ = TABLES[name]
    assert set(moves) == set(get_args(statuses))
    assert set().union(*moves.values()) <= set(moves)


@pytest.mark.parametrize("name", TABLES)
def test_every_status_can_be_reached_from_the_first(name: str) -> None:
    moves, _, first = TABLES[name]
    reached, found = set(), {first}
    while found:
        reached |= found
        found = set().union(*(moves[status] for status in found)) - reached
    assert reached == set(moves)


def test_terminal_states_have_no_moves_and_all_others_have() -> None:
    assert {"completed", "failed", "canceled"} == TERMINAL
    assert {status for status, moves in RUN_MOVES.items() if not moves} == TERMINAL
    assert {status for status, moves in STEP_MOVES.items() if not moves} == {
        "success",
        "skipped",
        "rejected",
        "expired",
        "canceled",
    }


def test_every_outcome_is_a_state_of_an_attempt_that_the_call_cannot_leave() -> None:
    for outcome in get_args(Outcome):
        assert not ATTEMPT_MOVES[outcome] & (IN_FLIGHT - {"intent"})
        assert outcome not in IN_FLIGHT
        assert outcome in wire.V0_RESULT_STATE
        assert outcome in wire.CANCEL_EVIDENCE
    assert set(wire.V0_RESULT_STATE.values()) == {"done", "failed", "timeout", "canceled"}
    assert set(wire.CANCEL_EVIDENCE.values()) == {"stopped", "too_late", "unknown"}


def test_only_a_proof_of_not_sent_leads_back_to_an_intent() -> None:
    assert {status for status, moves in ATTEMPT_MOVES.items() if "intent" in moves} == {"unsent"}
    assert {status for status, moves in ATTEMPT_MOVES.items() if "unsent" in moves} == {"intent", "unsent"}
    assert ATTEMPT_MOVES["unsent"] == {"intent", "unsent"}


def test_every_kind_of_command_is_decided() -> None:
    assert set(TABLE) == set(get_args(CommandKind))


@pytest.mark.parametrize("name", TABLES)
def test_a_move_that_is_not_in_the_table_is_refused(name: str) -> None:
    moves, _, _ = TABLES[name]
    for old, new in ((old, new) for old in moves for new in moves):
        if new in moves[old]:
            assert state.check_move(moves, old, new) == new
        else:
            with pytest.raises(IllegalMove, match=f"{old} → {new}"):
                state.check_move(moves, old, new)


ANN = Who(roles=("operator",), address="10.0.0.1")


def _about_approval() -> dict[type[Any], tuple[Run, Event]]:
    """``instances`` of what concerns a call that waits for approval."""
    run, waiting = Story().run, Story(step(manual=True)).run
    asked = waiting.revision
    assert asked is not None
    vote = Vote(by="ann", at=START, who=ANN, digest=asked.digest, comment="fine")
    edited = freeze(waiting.spec.steps[0], step_index=0, number=2, ground=Ground(), now=START, edited='{"n":2}')
    return {
        StepPaused: (
            run,
            StepPaused(
                step_index=0,
                paused_reason="awaiting_approval",
                code="x",
                message="y",
                revision=edited,
                voids="it changed",
            ),
        ),
        StepVoted: (waiting, StepVoted(step_index=0, vote=vote)),
        StepApproved: (waiting, StepApproved(step_index=0, vote=vote)),
        StepRejected: (waiting, StepRejected(step_index=0, by="ann", reason="no", who=ANN, digest=asked.digest)),
        StepEdited: (
            waiting,
            StepEdited(
                step_index=0,
                by="ann",
                revision=edited,
                diff=(Difference(path="/n", op="replace", before=1, after=2),),
                who=ANN,
                comment="two",
            ),
        ),
        StepExpired: (waiting, StepExpired(step_index=0, rejects=True)),
    }


def instances() -> dict[type[Any], tuple[Run, Event]]:
    """One event of every class with a run to which it may happen."""
    fresh, failed = Story(started=False).run, _unknown().run
    story = Story()
    run, req_id = story.run, story.req
    bounced = Story()
    bounced.bounce("gateway_unavailable")
    until, again = START + 1, Epoch(2)
    return {
        RunCreated: (fresh, RunCreated(title="T", steps=1, by="ann")),
        RunResumed: (failed, RunResumed(paused_reason="outcome_unknown", by="ann", who=ANN)),
        RunCompleted: (run, RunCompleted()),
        RunFailed: (run, RunFailed(error_code="run_timeout", message="no", until=until)),
        RunCanceled: (run, RunCanceled(reason=None, by="ann", until=until, who=ANN)),
        RunParked: (run, RunParked(step_index=0, message="oops")),
        **_about_approval(),
        StepSkipped: (failed, StepSkipped(step_index=0, by="ann", reason="no", who=ANN)),
        StepMarkedDone: (failed, StepMarkedDone(step_index=0, by="ann", note="seen", who=ANN)),
        StepRepeating: (run, StepRepeating(step_index=0, attempt_index=0, because="declared", at=until)),
        StepCompleted: (run, StepCompleted(step_index=0)),
        StepFailed: (run, StepFailed(step_index=0, attempt_index=0)),
        AttemptIntended: (
            bounced.run,
            AttemptIntended(
                step_index=0, attempt_index=0, req_id=bounced.req, epoch=again, ack_by=until, deadline_at=until
            ),
        ),
        AttemptSent: (run, AttemptSent(req_id=req_id)),
        AttemptUnsent: (run, AttemptUnsent(req_id=req_id, reason="x", detail="y", retry_at=until)),
        AttemptRunning: (run, AttemptRunning(req_id=req_id)),
        LogAppended: (
            run,
            LogAppended(req_id=req_id, channel="stdout", data="é", dropped_bytes=0, dropped_lines=0, mark=Mark(1, 2)),
        ),
        AttemptCanceling: (run, AttemptCanceling(req_id=req_id, reason="timeout", until=until)),
        AttemptEnded: (run, AttemptEnded(req_id=req_id, outcome="done", answered=True, result={"a": 1})),
        EvidenceFound: (
            run,
            EvidenceFound(req_id=req_id, ok=True, canceled=False, error_code=None, error_message=None, result=1),
        ),
        AttemptSettled: (failed, AttemptSettled(req_id=req_id, outcome="done", result=1)),
    }


def _unknown() -> Story:
    story = Story()
    story.hear(canceled(story.req))
    return story


def test_there_is_an_instance_of_every_event() -> None:
    assert set(instances()) == set(get_args(Event))


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_every_event_is_folded_and_told(kind: type[Any]) -> None:
    before, event = instances()[kind]
    assert type(event) is kind
    after = evolve(before, event, START + 5)
    assert after.last_seq == before.last_seq + 1
    assert after.last_at == START + 5
    assert after == evolve(before, event, START + 5)
    if kind is not EvidenceFound:
        assert replace(after, last_seq=before.last_seq, last_at=before.last_at) != before
    told = orjson.loads(orjson.dumps(wire.payload(event, after, START + 5)))
    assert (told["type"], told["run_id"]) == (kind.type, str(after.id))


UNTOLD = {
    "result": "its preview is told; the whole stands in the attempt's row",
    "error_code": "told as error",
    "error_message": "told as error",
    "step_index": "told as current_step_index",
    "code": "told as error_code",
    "vote": "told as by, digest_given, comment and who",
    "detail": "told as message",
    "outcome": "told as itself and as v0's state, or as what it settles",
}


@pytest.mark.parametrize("kind", get_args(Event), ids=lambda kind: kind.__name__)
def test_every_field_of_an_event_is_in_its_payload(kind: type[Any]) -> None:
    before, event = instances()[kind]
    told = wire.payload(event, evolve(before, event, START), START)
    silent = {field.name for field in fields(kind)} - set(told)
    assert silent <= UNTOLD.keys()


def test_time_never_runs_backwards() -> None:
    before, event = instances()[RunCompleted]
    assert evolve(before, event, START - 5_000).last_at == before.last_at


@pytest.mark.parametrize("kind", [AttemptRunning, AttemptEnded, LogAppended, EvidenceFound])
def test_an_event_about_an_attempt_that_the_run_does_not_know_is_refused(kind: type[Any]) -> None:
    _, event = instances()[kind]
    with pytest.raises(IllegalMove, match="does not know"):
        evolve(Story(started=False).run, event, START)


def test_a_second_attempt_while_one_is_in_flight_is_refused() -> None:
    story = Story()
    second = AttemptIntended(
        step_index=0, attempt_index=1, req_id=story.req[::-1], epoch=Epoch(1), ack_by=START, deadline_at=START
    )
    with pytest.raises(IllegalMove, match="in flight"):
        evolve(story.run, second, START)


@pytest.mark.parametrize("outcome", get_args(Outcome))
def test_a_second_verdict_is_refused_whatever_the_first_was(outcome: Outcome) -> None:
    story = Story()
    req_id = story.req
    run = story.run
    if outcome == "unsent":
        run = evolve(run, AttemptUnsent(req_id=req_id, reason="x", detail="y", retry_at=None), START)
    verdict = AttemptEnded(req_id=req_id, outcome=outcome, answered=False)
    run = evolve(run, verdict, START)
    with pytest.raises(IllegalMove):
        evolve(run, verdict, START)


def test_a_run_remembers_its_last_attempts_only() -> None:
    story = Story()
    first = story.req
    for _ in range(state.PAST_KEPT + 1):
        story.fail()
        story.say("resume")
    assert len(story.run.past) == state.PAST_KEPT
    story.hear(canceled(first))
    assert story.strangers == 1
