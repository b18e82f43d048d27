"""What a run does, one test for each sentence of the contract that the machine decides: steps, pauses, decisions.

What becomes of calls (timeouts, cancels, crashes, an absent Gateway) is in ``test_calls.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from daemon.machine.commands import Acked, CancelAcked, Letter, NotSent, SendUncertain, Sent
from daemon.machine.decide import TABLE
from daemon.machine.effects import Invoke
from daemon.machine.events import RunParked
from daemon.machine.evolve import evolve
from daemon.machine.state import MAX_ATTEMPTS, TERMINAL, IllegalMove, Run
from tests.machine.scenario import Story, acked, canceled, chunk, done, failed, step


def test_a_run_is_strictly_serial() -> None:
    story = Story(step("a"), step("b"), step("c"))
    for index in range(3):
        assert story.run.step_index == index
        assert story.statuses == ("success",) * index + ("running",) + ("pending",) * (2 - index)
        assert [effect.tool_name for effect in story.owed if isinstance(effect, Invoke)] == [f"demo__{'abc'[index]}"]
        story.succeed()
    assert story.run.status == "completed"
    assert story.run.finished_at == story.now


def test_finishing_a_step_and_intending_the_next_is_one_turn() -> None:
    story = Story(step("a"), step("b"))
    assert [event.type for event in story.succeed()][-3:] == ["tool.result", "step.completed", "step.progress"]


def test_the_events_of_one_step_come_in_the_order_of_v0() -> None:
    story = Story()
    story.hear(Sent(req_id=story.req))
    story.hear(acked(story.req))
    story.hear(chunk(story.req, "working\n"))
    story.hear(done(story.req))
    assert story.types == [
        *("run.created", "step.progress", "tool.sent", "tool.status", "tool.log"),
        *("tool.result", "step.completed", "run.completed"),
    ]


def test_a_manual_step_pauses_with_awaiting_approval_and_calls_nothing() -> None:
    story = Story(step(manual=True))
    assert (story.run.status, story.run.paused_reason) == ("paused", "awaiting_approval")
    assert story.run.attempt is None
    assert story.owed == ()
    assert story.run.paused_seq == story.run.last_seq


@pytest.mark.parametrize("kind", ["approve", "resume"])
def test_approve_and_resume_both_let_a_manual_step_go_on(kind: str) -> None:
    story = Story(step(manual=True))
    story.wait(5_000)
    assert story.say(kind, by="ann") is None
    assert story.statuses == ("running",)
    assert (story.run.steps[0].approved_by, story.run.steps[0].approved_at) == ("ann", story.now)
    assert story.types[-2:] == ["step.approved", "step.progress"]


def test_an_approved_step_that_failed_is_retried_without_a_second_approval() -> None:
    story = Story(step(manual=True))
    story.say("approve")
    story.fail()
    assert story.say("resume") is None
    assert story.statuses == ("running",)


def test_approve_names_the_step_that_waits() -> None:
    story = Story(step("a", manual=True))
    refusal = story.say("approve", step_id="b")
    assert refusal is not None
    assert refusal.code == "wrong_step"
    assert story.run.status == "paused"


@pytest.mark.parametrize("kind", ["approve", "reject"])
def test_what_does_not_wait_for_approval_cannot_be_approved_or_rejected(kind: str) -> None:
    story = Story()
    story.fail()
    refusal = story.say(kind)
    assert refusal is not None
    assert refusal.code == "not_awaiting_approval"


def test_a_failed_step_is_a_red_pause_and_resume_retries_it_with_the_next_attempt_index() -> None:
    story = Story()
    first = story.req
    assert [event.type for event in story.fail()][-3:] == ["tool.result", "step.progress", "step.paused"]
    assert (story.run.status, story.run.paused_reason) == ("paused", "step_failed")
    assert story.statuses == ("failed",)
    assert story.say("resume") is None
    assert (story.attempt.index, story.statuses) == (1, ("running",))
    assert story.req != first
    story.succeed()
    assert story.run.status == "completed"
    assert [row["attempt_index"] for row in story.rows("tool.result")] == [0, 1]


def test_on_error_continue_goes_on_and_emits_no_step_paused() -> None:
    story = Story(step("a", goes_on=True), step("b"))
    story.fail()
    assert story.statuses == ("failed", "running")
    story.succeed()
    assert story.run.status == "completed"
    assert "step.paused" not in story.types


def test_on_error_continue_goes_on_after_an_unknown_outcome_too() -> None:
    story = Story(step("a", goes_on=True), step("b"))
    story.hear(canceled(story.req))
    assert story.statuses == ("failed", "running")
    assert "step.paused" not in story.types


def test_a_result_that_is_ok_with_is_error_fails() -> None:
    story = Story()
    story.hear(done(story.req, {"isError": True, "content": [{"type": "text", "text": "no such file"}]}))
    (result,) = story.rows("tool.result")
    assert (result["state"], result["ok"]) == ("failed", False)
    assert result["error"] == {"code": "tool_error", "message": "no such file"}
    assert story.run.paused_reason == "step_failed"


@pytest.mark.parametrize("content", [None, [], "x", [{"text": 1}], [3], [{}]])
def test_an_error_of_a_tool_without_a_text_still_says_something(content: object) -> None:
    story = Story()
    story.hear(done(story.req, {"isError": True, "content": content}))
    assert story.rows("tool.result")[0]["error"]["message"]


@pytest.mark.parametrize("kind", ["resume", "approve", "reject"])
def test_a_run_that_is_not_paused_refuses_decisions(kind: str) -> None:
    story = Story()
    refusal = story.say(kind, seen=story.run.last_seq)
    assert refusal is not None
    assert refusal.code == "not_paused"
    assert not story.transitions[-1].events
    assert [row.code for row in story.transitions[-1].verdicts] == ["not_paused"]


def test_of_two_resumes_on_the_same_pause_exactly_one_is_applied() -> None:
    story = Story()
    story.fail()
    refusals = story.turn(commands=[story.command("resume", by="ann"), story.command("resume", by="bob")])
    assert [refusal.code if refusal else "applied" for refusal in refusals] == ["applied", "not_paused"]
    assert story.attempt.index == 1


def test_a_command_that_saw_an_older_pause_is_refused() -> None:
    story = Story()
    story.fail()
    old = story.run.paused_seq
    story.say("resume")
    story.fail()
    refusal = story.say("resume", seen=old)
    assert refusal is not None
    assert refusal.code == "pause_changed"
    assert story.attempt.index == 1


def test_nobody_approves_a_step_unseen() -> None:
    story = Story(step("a", manual=True), step("b", manual=True))
    seen = story.run.paused_seq
    story.turn(commands=[story.command("approve", by="ann")])
    story.succeed()
    refusal = story.say("resume", by="bob", seen=seen)
    assert refusal is not None
    assert refusal.code == "pause_changed"
    assert story.statuses == ("success", "pending")


def test_a_command_that_saw_no_pause_is_refused() -> None:
    story = Story()
    story.fail()
    (refusal,) = story.turn(commands=[story.command("resume", seen=0)])
    assert refusal is not None
    assert refusal.code == "pause_changed"


def test_cancel_of_a_paused_run_is_immediate() -> None:
    story = Story(step(manual=True))
    assert story.say("cancel", reason="changed my mind") is None
    assert (story.run.status, story.run.paused_reason) == ("canceled", "user_cancel")
    assert story.statuses == ("canceled",)
    assert story.owed == ()
    assert story.rows("run.canceled")[0]["reason"] == "changed my mind"


def test_a_second_cancel_changes_nothing() -> None:
    story = Story()
    assert story.turn(commands=[story.command("cancel"), story.command("cancel")]) == [None, None]
    assert story.types.count("run.canceled") == 1


def test_reject_fails_the_run() -> None:
    story = Story(step("a", manual=True), step("b"))
    assert story.say("reject", by="ann", reason="too risky") is None
    assert (story.run.status, story.run.error_code) == ("failed", "approval_rejected")
    assert story.statuses == ("rejected", "pending")
    assert story.types[-2:] == ["step.rejected", "run.failed"]
    assert story.rows("step.rejected")[0]["reason"] == "too risky"


def test_reject_of_a_step_with_on_error_continue_goes_on() -> None:
    story = Story(step("a", manual=True, goes_on=True), step("b"))
    assert story.say("reject") is None
    assert story.statuses == ("rejected", "running")
    story.succeed()
    assert story.run.status == "completed"


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("pair", list(itertools.product(["approve", "reject", "resume", "cancel"], repeat=2)))
def test_of_two_decisions_in_one_turn_the_first_stands(pair: tuple[str, str], goes_on: bool) -> None:
    story = Story(step("a", manual=True, goes_on=goes_on), step("b"))
    first, second = (story.command(kind) for kind in pair)
    refusals = story.turn(commands=[first, second])
    assert refusals[0] is None
    if pair[1] != "cancel":
        assert refusals[1] is not None
        assert refusals[1].code == "not_paused"
    expected = {"approve": "running", "resume": "running", "reject": "running" if goes_on else "failed"}
    canceled_after = pair[1] == "cancel" and expected.get(pair[0]) == "running"
    assert story.run.status == ("canceled" if canceled_after else expected.get(pair[0], "canceled"))


def test_a_step_is_attempted_a_hundred_times_and_no_more() -> None:
    story = Story()
    for _ in range(MAX_ATTEMPTS - 1):
        story.fail()
        assert story.say("resume") is None
    story.fail()
    refusal = story.say("resume")
    assert refusal is not None
    assert refusal.code == "attempts_exhausted"
    assert story.run.steps[0].attempts == MAX_ATTEMPTS
    assert story.say("cancel") is None


def test_the_last_attempt_of_a_parked_run_may_still_succeed() -> None:
    story = Story()
    for _ in range(MAX_ATTEMPTS - 1):
        story.fail()
        story.say("resume")
    story.park()
    assert story.say("resume") is None
    story.succeed()
    assert story.run.status == "completed"


def test_a_parked_run_stands_still_until_a_person_resumes_it() -> None:
    story = Story(step("a"), step("b"))
    story.park()
    story.succeed()
    assert (story.run.status, story.run.paused_reason) == ("paused", "engine_interrupted")
    assert story.statuses == ("running", "pending")
    assert story.say("resume") is None
    assert story.statuses == ("success", "running")


def test_start_twice_is_harmless() -> None:
    story = Story()
    before = story.run
    assert story.say("start") is None
    assert story.run == before


def test_a_run_that_was_not_started_does_nothing() -> None:
    story = Story(started=False)
    story.wait(60_000)
    assert story.log == []


def test_a_run_canceled_before_its_start_never_starts() -> None:
    story = Story(started=False)
    assert story.turn(commands=[story.command("cancel"), story.command("start")]) == [None, None]
    assert story.types == ["run.canceled"]


def completed() -> Story:
    story = Story()
    story.succeed()
    return story


def rejected() -> Story:
    story = Story(step("a", manual=True))
    story.say("reject")
    return story


def canceled_while_running() -> Story:
    story = Story(step("a"), step("b"))
    story.say("cancel")
    return story


def canceled_after_a_failure() -> Story:
    story = Story()
    story.hear(canceled(story.req))
    story.say("cancel")
    return story


ENDS: list[Callable[[], Story]] = [completed, rejected, canceled_while_running, canceled_after_a_failure]
LETTERS: list[Callable[[Story], Letter]] = [
    lambda story: Sent(req_id=story.req),
    lambda story: NotSent(req_id=story.req, tries=story.attempt.tries, reason="agent_offline", detail="gone"),
    lambda story: SendUncertain(req_id=story.req, reason="reset", detail="connection reset"),
    lambda story: acked(story.req),
    lambda story: Acked(req_id=story.req, accepted=False, reason="invalid_payload"),
    lambda story: chunk(story.req, "late"),
    lambda story: done(story.req, 1),
    lambda story: done(story.req, {"isError": True}),
    lambda story: failed(story.req),
    lambda story: canceled(story.req),
    lambda story: CancelAcked(req_id=story.req, will_cancel=True),
    lambda story: CancelAcked(req_id=story.req, will_cancel=False),
]


@pytest.mark.parametrize("end", ENDS)
def test_a_terminal_state_never_changes_by_any_command(end: Callable[[], Story]) -> None:
    for kind in TABLE:
        story = end()
        before = story.run
        assert before.status in TERMINAL
        refusal = story.say(kind, seen=before.paused_seq, confirm="run_again")
        assert story.run == before
        assert (refusal is None) == (kind in ("start", "cancel"))


@pytest.mark.parametrize("end", ENDS)
def test_a_terminal_state_never_changes_by_any_letter(end: Callable[[], Story]) -> None:
    for letter in LETTERS:
        story = end()
        before = story.run
        if before.attempt is not None:
            story.hear(letter(story))
            story.takeover()
            story.wait(3_600_000)
        assert outcome(story.run) == outcome(before)
        assert not story.run.in_flight


def outcome(run: Run) -> tuple[object, ...]:
    """All that people see as the end of a run."""
    return (run.status, run.paused_reason, run.steps, run.step_index, run.finished_at, run.error_code)


def test_a_table_keeps_terminal_for_ever_even_against_the_engine_itself() -> None:
    for end in ENDS:
        with pytest.raises(IllegalMove):
            evolve(end().run, RunParked(step_index=0), 0)
