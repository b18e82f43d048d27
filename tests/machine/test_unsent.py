"""A call that surely did not leave: the Gateway is away, nobody listens to it, or our own node held the call back."""

from __future__ import annotations

import itertools

import pytest

from daemon.machine.effects import Invoke, deadline
from daemon.machine.ground import Ground, Risk, Traits
from daemon.machine.hear import NOT_PERMITTED
from daemon.machine.settle import GATEWAY_UNAVAILABLE
from daemon.machine.state import Limits
from tests.machine.grounds import Said
from tests.machine.scenario import Story, spec, step

LIMITS = Limits()


def test_a_call_that_our_own_node_held_back_is_intended_again_however_long_that_lasts() -> None:
    story = Story()
    for _ in range(100):
        story.bounce(NOT_PERMITTED)
        assert story.run.status == "running"
        story.wait(LIMITS.backoff_ms)
        assert isinstance(story.owed[0], Invoke)
    assert story.now - story.attempt.first_intended_at > LIMITS.patience_ms
    assert story.run.steps[0].attempts == 1


def test_what_would_not_be_sent_is_known_with_its_intent_and_goes_once_the_lease_is_fresh() -> None:
    """In one commit: a holder that loses the run between the two would take the proof with it."""
    story = Story(step("a"), step("b"))
    story.permitted = False
    story.succeed()
    intended, unsent = story.transitions[-1].events[-2:]
    assert (intended.event_type, unsent.event_type) == ("step.progress", "tool.unsent")
    assert story.rows("tool.unsent")[-1]["reason"] == NOT_PERMITTED
    for _ in range(100):
        assert story.owed == ()
        assert story.attempt.state == "unsent"
        story.wait(LIMITS.backoff_ms)
    assert story.now - story.attempt.first_intended_at > LIMITS.patience_ms
    story.permitted = True
    story.wait(LIMITS.backoff_ms)
    assert isinstance(story.owed[0], Invoke)
    assert story.run.steps[1].attempts == 1


def test_with_nobody_listening_to_the_gateway_nothing_is_sent_and_patience_ends_in_a_red_pause() -> None:
    story = Story(listening=False)
    assert story.owed == ()
    story.wait(LIMITS.patience_ms)
    assert story.run.paused_reason == "step_failed"
    assert story.rows("tool.result")[0]["error"]["code"] == GATEWAY_UNAVAILABLE
    assert story.now - story.attempt.first_intended_at <= LIMITS.patience_ms
    *alarms, last = [row["retry_at"] for row in story.rows("tool.unsent")]
    assert last is None
    assert [later - earlier for earlier, later in itertools.pairwise(alarms)] == [1000, 2000, 4000, 5000]


def test_a_gateway_that_returns_within_patience_gets_the_call() -> None:
    story = Story(listening=False)
    story.wait(2_000)
    story.listening = True
    story.wait(2_000)
    assert isinstance(story.owed[0], Invoke)
    story.succeed()
    assert story.run.status == "completed"


def test_patience_is_counted_from_the_first_intent_whatever_refuses_the_call() -> None:
    story = Story()
    for _ in range(100):
        if story.run.status == "paused":
            break
        if story.attempt.state == "intent":
            story.bounce(GATEWAY_UNAVAILABLE)
        story.wait(250)
    assert story.run.paused_reason == "step_failed"
    assert story.now - story.attempt.first_intended_at <= LIMITS.patience_ms + 250


def test_with_nobody_listening_on_error_continue_goes_on() -> None:
    story = Story(step("a", goes_on=True), step("b", goes_on=True), listening=False)
    story.wait(2 * LIMITS.patience_ms)
    assert (story.run.status, story.statuses) == ("completed", ("failed", "failed"))
    assert "step.paused" not in story.types


def test_a_thousand_steps_with_nobody_listening_and_no_patience_settle_in_one_turn() -> None:
    steps = [step(f"s{number}", goes_on=True) for number in range(1000)]
    story = Story(workflow=spec(*steps), listening=False, limits=Limits(patience_ms=0))
    assert story.run.status == "completed"
    assert set(story.statuses) == {"failed"}
    assert len(story.transitions) == 1
    assert len(story.transitions[0].attempts) == 1000


def test_a_retry_after_a_red_pause_has_its_own_patience() -> None:
    story = Story(listening=False)
    story.wait(LIMITS.patience_ms)
    story.wait(3_600_000)
    story.listening = True
    assert story.say("resume") is None
    assert isinstance(story.owed[0], Invoke)
    assert story.attempt.first_intended_at == story.now


def test_a_call_that_waits_to_be_sent_again_waits_also_while_its_run_is_parked() -> None:
    story = Story()
    story.bounce(GATEWAY_UNAVAILABLE)
    story.park()
    assert deadline(story.run, story.now) is None
    story.wait(5_000)
    assert story.say("resume") is None
    assert isinstance(story.owed[0], Invoke)


def test_the_duration_of_a_call_does_not_count_the_wait_for_the_gateway() -> None:
    story = Story()
    story.bounce(GATEWAY_UNAVAILABLE)
    story.wait(LIMITS.backoff_ms + 100)
    story.succeed()
    assert story.rows("tool.result")[0]["duration_ms"] == 100


def asks(risk: Risk) -> Said:
    """Policy asks ann for every call, whatever the template says."""
    ground = Ground(traits=Traits(risk=risk, requires_approval=True), deciders=frozenset({"user:ann"}))
    return Said(lambda agent_id, tool_name: ground)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_step_may_be_rejected_while_its_call_waits_to_go_again(goes_on: bool) -> None:
    """Policy came to ask for approval between two tries: the call that never left is over with its step."""
    story = Story(step("a", goes_on=goes_on), step("b"))
    story.bounce(NOT_PERMITTED)
    story.grounds = asks("medium")
    story.wait(LIMITS.backoff_max_ms)
    assert (story.run.paused_reason, story.run.steps[0].status) == ("awaiting_approval", "running")
    assert story.say("reject", step_id="a") is None
    assert (story.run.steps[0].status, story.attempt.state) == ("rejected", "unsent")
    assert story.attempt.ended_at is not None
    assert (story.run.status, story.run.step_index) == (("paused", 1) if goes_on else ("failed", 0))


@pytest.mark.parametrize("goes_on", [False, True])
def test_an_approval_may_expire_while_its_call_waits_to_go_again(goes_on: bool) -> None:
    """As above; and an attempt of the step behind is not taken for one of the next."""
    terms = {"expires_in_ms": 60_000, "on_expiry": "reject"}
    story = Story(step("a", manual=True, goes_on=goes_on, **terms), step("b"))
    story.say("approve", step_id="a")
    story.bounce(NOT_PERMITTED)
    story.grounds = asks("high")
    story.wait(LIMITS.backoff_max_ms)
    assert story.rows("step.paused")[-1]["voids"]
    story.grounds = Said()
    story.wait(60_000)
    assert story.run.steps[0].status == "expired"
    attempts = {(row["step_id"], row["outcome"]) for row in story.rows("tool.result")}
    assert attempts >= {("a", "unsent")}
    if goes_on:
        assert (story.attempt.step_index, story.attempt.index) == (1, 0)
