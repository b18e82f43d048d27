"""An unknown outcome: settled by a late RESULT, decided by a person, or repeated where that is harmless."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.machine.effects import FIRST_LOOK_MS, LAST_LOOK_MS, Inquire, deadline
from daemon.machine.events import AttemptSettled
from daemon.machine.state import MAX_ATTEMPTS, Limits
from tests.machine.scenario import Story, acked, canceled, done, failed, spec, step

LIMITS = Limits()
SILENCE_MS = LIMITS.ack_timeout_ms + LIMITS.cancel_grace_ms
"""Until an agent that never says a word makes an outcome unknown."""


def unknown(*steps: dict[str, Any], **about: Any) -> Story:
    """A story whose agent stayed silent until nobody can tell."""
    story = Story(*(steps or (step("a"), step("b"))), **about)
    story.wait(SILENCE_MS)
    return story


# --- a RESULT that comes before the person decides --------------------------------------------------------------------


def test_a_late_success_settles_it_and_the_run_goes_on() -> None:
    story = unknown()
    assert story.run.paused_reason == "outcome_unknown"
    events = story.hear(done(story.req, {"x": 1}))
    assert [event.type for event in events] == ["tool.evidence", "step.completed", "step.progress"]
    assert (story.run.status, story.run.paused_reason, story.statuses) == ("running", None, ("success", "running"))
    (evidence,) = story.rows("tool.evidence")
    assert (evidence["settles"], evidence["ok"], evidence["result_preview"]) == ("done", True, '{"x":1}')


def test_what_settles_stands_in_the_row_of_the_attempt_and_clears_what_was_unknown() -> None:
    story = unknown()
    story.hear(done(story.req, 5))
    row = next(row for row in story.transitions[-1].attempts if row.attempt.index == 0 and row.result)
    assert (row.attempt.state, row.result, row.error) == ("done", "5", "null")


def test_a_late_failure_makes_the_pause_a_red_one() -> None:
    story = unknown()
    story.hear(failed(story.req))
    assert (story.run.paused_reason, story.statuses[0], story.attempt.state) == ("step_failed", "failed", "failed")
    assert story.say("resume") is None  # the outcome is known, so nothing is to be confirmed


def test_a_late_cancel_of_what_we_asked_to_cancel_settles_it_as_a_timeout() -> None:
    story = unknown()
    story.hear(canceled(story.req))
    assert (story.run.paused_reason, story.attempt.state) == ("step_failed", "timeout")


def test_a_cancel_that_nobody_asked_for_settles_nothing_and_a_result_after_it_does() -> None:
    story = Story(step("a"), step("b"))
    story.hear(acked(story.req), canceled(story.req))
    assert story.run.paused_reason == "outcome_unknown"
    assert story.hear(canceled(story.req)) == []
    story.hear(done(story.req))
    assert story.statuses == ("success", "running")


def test_nor_does_it_hide_the_result_that_comes_in_the_same_turn() -> None:
    story = Story(step("a"), step("b"))
    story.hear(acked(story.req), canceled(story.req), done(story.req))
    assert story.statuses == ("success", "running")


def test_a_result_in_the_same_turn_as_the_persons_word_came_first() -> None:
    story = unknown()
    resume = story.command("resume", confirm="run_again")
    (refusal,) = story.turn([done(story.req)], [resume])
    assert refusal is not None
    assert refusal.code == "not_paused"
    assert story.statuses == ("success", "running")


def test_a_result_that_comes_while_the_run_is_parked_settles_it_and_the_run_stands_until_it_is_resumed() -> None:
    """Both that became unknown in the meantime, and that was unknown before: nobody has decided on either."""
    before, meanwhile = unknown(), Story(step("a"), step("b"))
    before.park()
    meanwhile.park()
    meanwhile.wait(SILENCE_MS)
    for story in (before, meanwhile):
        assert (story.attempt.state, story.run.paused_reason) == ("unknown", "engine_interrupted")
        assert [type(effect) for effect in story.owed] == [Inquire]
        (settled,) = story.hear(done(story.req))
        assert isinstance(settled, AttemptSettled)
        assert (story.run.status, story.run.paused_reason) == ("paused", "engine_interrupted")
        assert story.say("resume") is None
        assert story.statuses == ("success", "running")


def test_a_repeat_that_is_due_while_the_run_is_parked_waits_and_a_result_makes_it_needless() -> None:
    story = unknown(step("a", idempotent=True), step("b"))
    assert story.run.unsettled is not None
    story.park()
    story.wait(60_000)
    assert story.attempt.index == 0
    story.hear(done(story.req))
    assert story.say("resume") is None
    assert story.statuses == ("success", "running")


@pytest.mark.parametrize("kind", ["skip", "mark_done", "resume"])
def test_after_the_persons_word_a_result_is_evidence_only(kind: Any) -> None:
    story = unknown()
    late = story.req
    assert story.say(kind, note="seen", confirm="run_again") is None
    before = story.statuses
    (event,) = story.hear(failed(late))
    assert (event.type, isinstance(event, AttemptSettled)) == ("tool.evidence", False)
    assert story.statuses == before


# --- what a person may do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", ["unknown", "failed"])
def test_skip_leaves_the_step_behind(fails: str) -> None:
    story = Story(step("a"), step("b"))
    story.wait(SILENCE_MS) if fails == "unknown" else story.fail()
    assert story.say("skip", by="bob", reason="not needed") is None
    assert (story.statuses, story.run.status) == (("skipped", "running"), "running")
    (skipped,) = story.rows("step.skipped")
    assert (skipped["by"], skipped["reason"], skipped["step_id"]) == ("bob", "not needed", "a")
    state = story.run.steps[0]
    assert (state.decided_by, state.decided_at, state.note) == ("bob", story.now, "not needed")


def test_skipping_the_last_step_completes_the_run() -> None:
    story = unknown(step("a"))
    story.say("skip")
    assert (story.run.status, story.statuses) == ("completed", ("skipped",))


@pytest.mark.parametrize("fails", ["unknown", "failed"])
def test_mark_done_makes_it_a_success_by_a_persons_word(fails: str) -> None:
    story = Story(step("a"), step("b"))
    story.wait(SILENCE_MS) if fails == "unknown" else story.fail()
    assert story.say("mark_done", by="bob", note="the file is there") is None
    assert story.statuses == ("success", "running")
    (completed,) = story.rows("step.completed")
    assert (completed["marked"], completed["by"], completed["note"]) == (True, "bob", "the file is there")
    assert story.run.steps[0].note == "the file is there"


@pytest.mark.parametrize(
    ("kind", "about", "code"),
    [
        ("mark_done", {}, "note_required"),
        ("mark_done", {"note": ""}, "note_required"),
        ("mark_done", {"note": " \t\n\u2003"}, "note_required"),
        ("mark_done", {"note": "x", "step_id": "b"}, "wrong_step"),
        ("skip", {"step_id": "b"}, "wrong_step"),
        ("skip", {"seen": 1}, "pause_changed"),
        ("mark_done", {"note": "x", "seen": 1}, "pause_changed"),
        ("resume", {}, "confirm_required"),
    ],
)
def test_a_word_that_does_not_fit_is_refused_and_changes_nothing(kind: Any, about: Any, code: str) -> None:
    story = unknown()
    before = story.run
    refusal = story.say(kind, **about)
    assert refusal is not None
    assert refusal.code == code
    assert story.run == before


@pytest.mark.parametrize("kind", ["skip", "mark_done"])
def test_what_waits_for_approval_is_neither_skipped_nor_marked(kind: Any) -> None:
    story = Story(step("a", manual=True))
    refusal = story.say(kind, note="x")
    assert refusal is not None
    assert refusal.code == "awaiting_approval"


@pytest.mark.parametrize("kind", ["skip", "mark_done"])
def test_a_parked_run_is_resumed_before_a_step_is_left_behind(kind: Any) -> None:
    story = Story()
    story.park()
    refusal = story.say(kind, note="x")
    assert refusal is not None
    assert refusal.code == "not_failed"


# --- repeated where it is harmless ------------------------------------------------------------------------------------

READ_ONLY = {("agent-1", "demo__a"): "read_only"}


@pytest.mark.parametrize(
    ("declared", "hints", "because"),
    [
        (True, {}, "declared"),
        (None, READ_ONLY, "read_only"),
        (None, {("agent-1", "demo__a"): "idempotent"}, "idempotent"),
        (True, READ_ONLY, "declared"),
    ],
)
def test_a_harmless_call_of_unknown_outcome_is_made_again_by_itself(declared: Any, hints: Any, because: str) -> None:
    story = unknown(step("a", idempotent=declared), step("b"), hints=hints)
    first = story.req
    assert (story.run.status, story.statuses[0]) == ("running", "pending")
    (repeating,) = story.rows("step.repeating")
    assert (repeating["because"], repeating["attempt_index"]) == (because, 0)
    story.wait(LIMITS.backoff_ms)
    assert story.req != first
    assert story.attempt.index == 1
    story.succeed()
    assert story.statuses == ("success", "running")
    assert "step.paused" not in story.types


@pytest.mark.parametrize(
    ("declared", "hints"),
    [(None, {}), (False, READ_ONLY), (None, {("agent-2", "demo__a"): "read_only", ("agent-1", "x"): "read_only"})],
)
def test_any_other_call_waits_for_a_person(declared: Any, hints: Any) -> None:
    story = unknown(step("a", idempotent=declared), hints=hints)
    assert story.run.paused_reason == "outcome_unknown"
    assert "step.repeating" not in story.types


def test_only_an_unknown_outcome_is_repeated() -> None:
    story = Story(step("a", idempotent=True))
    story.fail()
    assert story.run.paused_reason == "step_failed"


def test_repeats_are_bounded_and_back_off_and_a_persons_word_begins_anew() -> None:
    story = Story(step("a", idempotent=True))
    story.wait(10 * SILENCE_MS)
    assert story.run.paused_reason == "outcome_unknown"
    assert story.run.steps[0].attempts == 1 + LIMITS.repeats
    waits = [row["at"] - at for row, at in zip(story.rows("step.repeating"), _times(story), strict=True)]
    assert waits == [LIMITS.backoff_ms, 2 * LIMITS.backoff_ms, 4 * LIMITS.backoff_ms]
    story.say("resume", confirm="run_again")
    story.wait(10 * SILENCE_MS)
    assert story.run.steps[0].attempts == 2 * (1 + LIMITS.repeats)


def _times(story: Story) -> list[int]:
    return [at for at, event in story.log if event.type == "step.repeating"]


def test_repeats_end_with_the_attempts_of_the_step() -> None:
    story = Story(step("a", idempotent=True))
    for _ in range(MAX_ATTEMPTS - 1):
        story.fail()
        story.say("resume")
    story.wait(10 * SILENCE_MS)
    assert story.run.steps[0].attempts == MAX_ATTEMPTS
    assert story.run.paused_reason == "outcome_unknown"


def test_after_the_bound_on_error_continue_goes_on() -> None:
    story = Story(step("a", idempotent=True, goes_on=True), step("b", manual=True))
    story.wait(10 * SILENCE_MS)
    assert story.statuses == ("failed", "pending")
    assert story.run.paused_reason == "awaiting_approval"


def test_a_result_before_the_repeat_settles_it_and_nothing_is_called_again() -> None:
    story = unknown(step("a", idempotent=True), step("b"))
    story.hear(done(story.req))
    assert story.statuses == ("success", "running")
    assert [row["attempt_index"] for row in story.rows("step.progress")] == [0, 0]


def test_a_takeover_between_keeps_the_repeat_and_its_moment() -> None:
    story = unknown(step("a", idempotent=True))
    first, alarm = story.req, deadline(story.run, story.now)
    story.takeover()
    assert (story.req, deadline(story.run, story.now)) == (first, alarm)
    story.wait(LIMITS.backoff_ms)
    assert (story.req != first, story.attempt.epoch) == (True, story.epoch)


def test_a_repeat_waits_for_a_gateway_that_is_heard() -> None:
    story = unknown(step("a", idempotent=True))
    story.listening = False
    story.wait(LIMITS.backoff_ms)
    assert (story.attempt.index, story.attempt.state) == (1, "unsent")
    story.listening = True
    story.wait(LIMITS.backoff_max_ms)
    assert story.attempt.state == "intent"


def test_cancel_ends_a_run_that_waits_to_repeat() -> None:
    story = unknown(step("a", idempotent=True))
    story.say("cancel")
    assert (story.run.status, deadline(story.run, story.now)) == ("canceled", None)
    assert story.owed == ()


# --- looks ------------------------------------------------------------------------------------------------------------


def test_an_attempt_is_inquired_about_at_30_seconds_and_then_at_twice_the_age() -> None:
    story = Story(step("a", timeout_ms=600_000))
    begun = story.now
    story.hear(acked(story.req))
    looks = []
    for _ in range(4):
        alarm = deadline(story.run, story.now)
        assert alarm is not None
        story.wait(alarm - story.now)
        looks.append((story.now - begun, story.owed))
    ages = [FIRST_LOOK_MS << look for look in range(4)]
    assert looks == [(age, (Inquire(req_id=story.req, look=n + 1),)) for n, age in enumerate(ages)]


def test_while_a_person_thinks_it_over_the_result_is_looked_for_for_a_day() -> None:
    story = unknown()
    assert story.owed == (Inquire(req_id=story.req, look=0),)
    story.wait(2 * LAST_LOOK_MS)
    assert deadline(story.run, story.now) is None
    assert story.run.paused_reason == "outcome_unknown"


# --- the run's own deadline -------------------------------------------------------------------------------------------


def timed(*steps: dict[str, Any], ms: int) -> Story:
    return Story(workflow=spec(*steps, run_timeout_ms=ms))


def test_a_run_that_takes_too_long_fails_and_its_call_is_stopped() -> None:
    story = timed(step("a"), step("b"), ms=20_000)
    story.hear(acked(story.req))
    story.wait(20_000)
    assert (story.run.status, story.run.error_code, story.statuses) == (
        "failed",
        "run_timeout",
        ("canceled", "pending"),
    )
    assert story.run.paused_reason is None
    story.confirm_cancel()
    (result,) = story.rows("tool.result")
    assert (result["state"], result["cancel"]) == ("canceled", "stopped")
    assert deadline(story.run, story.now) is None


def test_the_runs_deadline_counts_the_time_people_take() -> None:
    story = timed(step("a", manual=True), ms=20_000)
    assert deadline(story.run, story.now) == story.now + 20_000
    story.wait(20_000)
    assert (story.run.status, story.statuses) == ("failed", ("canceled",))


def test_a_run_without_a_deadline_waits_for_ever_and_one_that_ended_has_none() -> None:
    assert deadline(Story(step("a", manual=True)).run, 0) is None
    story = timed(step("a"), ms=20_000)
    story.succeed()
    story.wait(30_000)
    assert story.run.status == "completed"
