"""What becomes of a tool call: sent, unsent, timed out, canceled or unknown; and what never happens twice."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.machine.commands import CancelAcked, NotSent, ReqId, Result, SendUncertain, Sent
from daemon.machine.effects import AGENT_BACKSTOP_MS, WHILE_CANCELING, Cancel, Inquire, Invoke, deadline
from daemon.machine.settle import GATEWAY_UNAVAILABLE
from daemon.machine.state import Limits
from tests.machine.scenario import Story, acked, canceled, chunk, done, failed, step

LIMITS = Limits()


def sole_result(story: Story) -> dict[str, Any]:
    (result,) = story.rows("tool.result")
    return result


def test_an_intent_owes_the_call_with_its_arguments_and_a_backstop_behind_our_deadline() -> None:
    story = Story(step("a", timeout_ms=1_000))
    assert story.owed == (
        Invoke(
            req_id=story.req,
            tries=0,
            agent_id="agent-1",
            tool_name="demo__a",
            arguments={"n": 1},
            timeout_ms=1_000 + AGENT_BACKSTOP_MS,
            stream=True,
        ),
    )


@pytest.mark.parametrize("sign", [Sent, acked])
def test_a_call_that_left_owes_nothing_more_to_its_own_epoch(sign: type[Sent]) -> None:
    story = Story()
    story.hear(sign(req_id=story.req))
    assert story.owed == ()


def test_an_ack_before_the_202_is_normal() -> None:
    story = Story()
    story.hear(acked(story.req))
    story.hear(Sent(req_id=story.req))
    assert story.attempt.state == "acked"
    assert story.types.count("tool.status") == 1
    assert "tool.sent" not in story.types


def test_a_result_before_its_ack_its_202_and_its_chunks_is_normal() -> None:
    story = Story()
    story.hear(done(story.req, 5))
    story.hear(chunk(story.req, "running tool: a\n"))
    story.hear(acked(story.req), Sent(req_id=story.req))
    assert story.run.status == "completed"
    assert story.types[2:] == ["tool.status", "tool.result", "step.completed", "run.completed", "tool.log"]


def test_duplicates_are_nothing() -> None:
    story = Story(step("a"), step("b"))
    letters = (Sent(req_id=story.req), acked(story.req), chunk(story.req, "x", number=1), done(story.req, 5))
    story.hear(*letters, *letters)
    assert story.types.count("tool.result") == story.types.count("tool.log") == story.types.count("tool.status") == 1
    before = story.run
    assert story.hear(*letters, *reversed(letters)) == []
    assert story.run == before


def test_the_first_result_wins() -> None:
    story = Story()
    story.hear(failed(story.req), done(story.req))
    assert sole_result(story)["state"] == "failed"
    assert story.hear(done(story.req)) == []


def test_letters_about_attempts_that_nobody_made_are_counted_and_ignored() -> None:
    story = Story()
    assert story.hear(done(ReqId("forged")), chunk(ReqId("forged"), "x"), Sent(req_id=ReqId("forged"))) == []
    assert story.strangers == 3


def test_a_call_that_the_agent_could_not_read_fails() -> None:
    story = Story()
    story.hear(acked(story.req, accepted=False))
    assert sole_result(story)["error"]["code"] == "invalid_payload"
    assert story.run.paused_reason == "step_failed"


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_timeout_owes_cancel_and_the_agents_confirmation_makes_it_a_timeout() -> None:
    story = Story(step(timeout_ms=30_000))
    story.hear(acked(story.req))
    story.wait(29_999)
    assert story.owed == ()
    story.wait(1)
    assert story.owed == (
        Inquire(req_id=story.req, look=WHILE_CANCELING),
        Cancel(req_id=story.req, agent_id="agent-1", reason="timeout"),
    )
    story.confirm_cancel()
    result = sole_result(story)
    assert (result["state"], result["outcome"], result["duration_ms"]) == ("timeout", "timeout", 30_000)
    assert story.run.paused_reason == "step_failed"


@pytest.mark.parametrize("code", ["timeout", "canceled"])
def test_a_timeout_is_confirmed_by_the_agents_result_as_well(code: str) -> None:
    story = Story(step(timeout_ms=30_000))
    story.hear(acked(story.req))
    story.wait(30_000)
    story.hear(failed(story.req, code, code))
    assert sole_result(story)["outcome"] == "timeout"


def test_a_result_after_the_deadline_but_within_the_grace_counts() -> None:
    story = Story(step(timeout_ms=30_000))
    story.hear(acked(story.req))
    story.wait(30_000 + LIMITS.cancel_grace_ms - 1)
    story.hear(done(story.req))
    assert story.run.status == "completed"


def test_a_result_in_the_same_turn_as_the_confirmation_counts() -> None:
    """Else the step failed, and whoever resumed it would call again what is done."""
    story = Story(step(timeout_ms=30_000))
    story.hear(acked(story.req))
    story.wait(30_000)
    story.hear(CancelAcked(req_id=story.req, will_cancel=True), done(story.req))
    assert story.run.status == "completed"


def test_a_timeout_without_confirmation_is_unknown_and_pauses_as_outcome_unknown() -> None:
    story = Story(step(timeout_ms=30_000))
    story.hear(acked(story.req))
    story.wait(30_000)
    story.confirm_cancel(will_cancel=False)
    assert story.attempt.in_flight
    story.wait(LIMITS.cancel_grace_ms)
    result = sole_result(story)
    assert (result["state"], result["outcome"]) == ("timeout", "unknown")
    assert story.run.paused_reason == "outcome_unknown"


def test_an_agent_that_never_acknowledges_is_canceled_and_its_outcome_unknown() -> None:
    story = Story()
    story.hear(Sent(req_id=story.req))
    story.wait(LIMITS.ack_timeout_ms)
    assert [effect.reason for effect in story.owed if isinstance(effect, Cancel)] == ["ack_timeout"]
    story.wait(LIMITS.cancel_grace_ms)
    assert (sole_result(story)["outcome"], story.run.paused_reason) == ("unknown", "outcome_unknown")


def test_an_agent_that_never_acknowledged_and_stops_the_call_is_not_said_to_have_passed_the_deadline() -> None:
    """Its INVOKE_ACK may have been lost where nobody listened."""
    story = Story()
    story.wait(LIMITS.ack_timeout_ms)
    story.confirm_cancel()
    result = sole_result(story)
    assert result["outcome"] == "timeout"
    assert result["error"]["message"] == "No acknowledgement of the call was heard, and the agent stopped it."


def test_an_agent_that_acknowledged_may_take_until_the_deadline() -> None:
    story = Story()
    story.hear(acked(story.req))
    story.wait(LIMITS.ack_timeout_ms + 1)
    story.turn()
    assert story.owed == ()


def test_a_send_whose_answer_was_lost_proves_nothing() -> None:
    story = Story()
    assert story.hear(SendUncertain(req_id=story.req, reason="reset", detail="connection reset")) == []
    story.wait(LIMITS.ack_timeout_ms + LIMITS.cancel_grace_ms)
    assert story.run.paused_reason == "outcome_unknown"


def test_resume_of_an_unknown_outcome_needs_confirm_run_again() -> None:
    story = Story()
    story.hear(canceled(story.req))
    for confirm in (None, "yes"):
        refusal = story.say("resume", confirm=confirm)
        assert refusal is not None
        assert refusal.code == "confirm_required"
    assert story.say("resume", confirm="run_again") is None
    assert story.attempt.index == 1


def test_canceled_that_nobody_asked_for_is_unknown() -> None:
    story = Story()
    story.hear(acked(story.req), canceled(story.req))
    result = sole_result(story)
    assert (result["state"], result["outcome"]) == ("timeout", "unknown")
    assert result["error"]["code"] == "canceled_by_agent"
    assert story.run.paused_reason == "outcome_unknown"


def test_a_cancel_ack_that_nobody_asked_for_is_nothing() -> None:
    story = Story()
    assert story.hear(CancelAcked(req_id=story.req, will_cancel=True)) == []


# --- cancel of a running run -----------------------------------------------------------------------------------------


def test_cancel_of_a_running_run_ends_it_at_once_and_owes_cancel() -> None:
    story = Story(step("a"), step("b"))
    story.hear(acked(story.req))
    assert story.say("cancel") is None
    assert (story.run.status, story.statuses) == ("canceled", ("canceled", "pending"))
    assert Cancel(req_id=story.req, agent_id="agent-1", reason="user") in story.owed
    assert deadline(story.run, story.now) == story.now + LIMITS.cancel_grace_ms


def test_cancel_logs_that_the_agent_stopped() -> None:
    story = Story()
    story.say("cancel")
    story.confirm_cancel()
    result = sole_result(story)
    assert (result["state"], result["canceled"], result["cancel"]) == ("canceled", True, "stopped")
    assert deadline(story.run, story.now) is None


@pytest.mark.parametrize("letter", [done, failed])
def test_cancel_logs_that_it_came_too_late(letter: type[Result]) -> None:
    story = Story()
    story.say("cancel")
    story.confirm_cancel(will_cancel=False)
    story.hear(letter(req_id=story.req))
    assert sole_result(story)["cancel"] == "too_late"
    assert story.run.status == "canceled"


def test_cancel_logs_that_nobody_knows() -> None:
    story = Story()
    story.say("cancel")
    story.wait(LIMITS.cancel_grace_ms)
    assert (sole_result(story)["cancel"], sole_result(story)["outcome"]) == ("unknown", "unknown")
    assert deadline(story.run, story.now) is None


def test_cancel_of_a_call_that_never_left_stopped_it() -> None:
    story = Story()
    story.say("cancel")
    story.bounce(GATEWAY_UNAVAILABLE)
    assert story.rows("tool.unsent")[0]["retry_at"] is None
    assert sole_result(story)["cancel"] == "stopped"


def test_cancel_while_a_call_waits_to_be_sent_again_ends_the_attempt() -> None:
    story = Story()
    story.bounce(GATEWAY_UNAVAILABLE)
    story.say("cancel")
    assert (sole_result(story)["outcome"], story.run.status) == ("unsent", "canceled")
    assert deadline(story.run, story.now) is None


# --- evidence --------------------------------------------------------------------------------------------------------


def test_a_result_after_the_verdict_is_evidence_once() -> None:
    story = Story(step("a", goes_on=True), step("b", manual=True))
    late = story.req
    story.wait(LIMITS.ack_timeout_ms + LIMITS.cancel_grace_ms)
    assert [event.type for event in story.hear(done(late, {"x": 1}))] == ["tool.evidence"]
    assert story.hear(done(late, {"x": 1}), failed(late)) == []
    assert story.statuses == ("failed", "pending")
    (evidence,) = story.rows("tool.evidence")
    assert (evidence["ok"], evidence["result_preview"]) == (True, '{"x":1}')


def test_a_result_after_the_cancel_ack_is_evidence_and_in_the_same_turn_the_verdict() -> None:
    """An agent promises to stop what may be done by then; its word about what was done is worth more."""
    for turns, cancel in ((2, "stopped"), (1, "too_late")):
        story = Story()
        story.say("cancel")
        letters = CancelAcked(req_id=story.req, will_cancel=True), done(story.req, 5)
        for number in range(turns):
            story.hear(*(letters if turns == 1 else letters[number : number + 1]))
        assert sole_result(story)["cancel"] == cancel
        assert [row["result_preview"] for row in story.rows("tool.evidence")] == ["5"] * (turns - 1)


def test_evidence_for_an_earlier_attempt_touches_neither_the_newer_one_nor_the_run() -> None:
    story = Story()
    earlier = story.req
    story.wait(LIMITS.ack_timeout_ms + LIMITS.cancel_grace_ms)
    story.say("resume", confirm="run_again")
    assert [event.type for event in story.hear(done(earlier))] == ["tool.evidence"]
    assert story.attempt.in_flight
    assert story.rows("tool.evidence")[0]["attempt_index"] == 0


# --- never twice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [None, Sent, acked])
def test_a_call_of_an_older_epoch_owes_inquire_and_never_invoke(sign: type[Sent] | None) -> None:
    story = Story()
    if sign is not None:
        story.hear(sign(req_id=story.req))
    story.takeover()
    assert story.owed == (Inquire(req_id=story.req, look=0),)
    story.wait(60_000 + LIMITS.cancel_grace_ms)
    assert story.run.paused_reason == "outcome_unknown"


def test_an_unsent_call_may_be_intended_again_by_another_epoch_with_the_same_req_id() -> None:
    story = Story()
    req_id = story.req
    story.bounce(GATEWAY_UNAVAILABLE)
    assert (story.attempt.state, story.owed) == ("unsent", ())
    story.takeover()
    story.wait(LIMITS.backoff_ms)
    (invoke,) = story.owed
    assert isinstance(invoke, Invoke)
    assert (invoke.req_id, invoke.tries, story.attempt.epoch) == (req_id, 1, story.epoch)
    assert story.run.steps[0].attempts == 1


def test_a_proof_seen_twice_does_not_deny_the_newer_call() -> None:
    story = Story()
    proof = NotSent(req_id=story.req, tries=0, reason=GATEWAY_UNAVAILABLE, detail="refused")
    story.hear(proof)
    story.wait(LIMITS.backoff_ms)
    assert isinstance(story.owed[0], Invoke)
    assert story.hear(proof) == []
    assert story.attempt.state == "intent"


@pytest.mark.parametrize("sign", [Sent, acked])
def test_a_proof_of_not_sent_is_no_proof_when_the_call_is_known_to_have_left(sign: type[Sent]) -> None:
    story = Story()
    story.hear(sign(req_id=story.req))
    assert story.bounce(GATEWAY_UNAVAILABLE) == []


def test_an_offline_agent_is_a_red_pause_at_once() -> None:
    story = Story()
    story.bounce("agent_offline")
    result = sole_result(story)
    assert (result["state"], result["outcome"]) == ("failed", "unsent")
    assert story.run.paused_reason == "step_failed"
