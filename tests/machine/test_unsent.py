"""A call that surely did not leave: the Gateway is away, nobody listens to it, or our own node held the call back."""

from __future__ import annotations

import itertools

from daemon.machine.effects import Invoke, deadline
from daemon.machine.hear import NOT_PERMITTED
from daemon.machine.settle import GATEWAY_UNAVAILABLE
from daemon.machine.state import Limits
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
