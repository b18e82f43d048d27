"""An approval that was more than a bare word is good for one call that may have run; an edit for one input schema."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.machine.ground import Ground, Risk, Traits
from tests.machine.grounds import Said
from tests.machine.scenario import Story, done, failed, step


def of_risk(risk: Risk, schema_hash: str | None = None) -> Said:
    return Said(lambda agent_id, tool_name: Ground(traits=Traits(risk=risk), schema_hash=schema_hash))


def approve(story: Story) -> None:
    assert story.run.revision is not None
    assert story.say("approve", step_id="a", digest=story.run.revision.digest) is None


@pytest.mark.parametrize(("risk", "again"), [("high", "paused"), ("medium", "running")])
def test_what_was_called_as_approved_and_failed_is_approved_anew_where_the_digest_was_asked_for(
    risk: Risk, again: str
) -> None:
    story = Story(step(manual=True), grounds=of_risk(risk))
    approve(story)
    story.hear(failed(story.req))
    assert story.say("resume") is None
    assert story.run.status == again
    if again == "paused":
        assert story.run.paused_reason == "awaiting_approval"
        assert "did not succeed" in story.rows("step.paused")[-1]["voids"]
        approve(story)
    story.hear(done(story.req))
    assert story.run.status == "completed"
    assert story.run.steps[0].attempts == 2


@pytest.mark.parametrize(
    "terms",
    [
        {"approvers": ["user:bob"]},
        {"approvers": ["user:bob"], "forbid_self": True},
        {"approvers": ["user:bob", "user:cyd"], "quorum": 2},
    ],
)
def test_what_others_were_asked_about_is_asked_of_them_anew_before_whoever_started_it_has_it_called_again(
    terms: dict[str, Any],
) -> None:
    story = Story(step(manual=True, **terms), grounds=of_risk("low"))
    for again in (False, True):
        assert story.run.paused_reason == "awaiting_approval"
        assert story.run.revision is not None
        assert story.run.revision.number == 1 + again
        for by in ("bob", "cyd")[: terms.get("quorum", 1)]:
            assert story.say("approve", step_id="a", digest=story.run.revision.digest, by=by) is None
        story.hear(failed(story.req) if not again else done(story.req))
        story.say("resume")
    assert story.run.status == "completed"


def test_an_approval_of_others_is_not_used_up_by_a_call_that_was_surely_not_sent() -> None:
    story = Story(step(manual=True, approvers=["user:bob"]), grounds=of_risk("low"))
    assert story.say("approve", step_id="a", by="bob") is None
    story.bounce()
    assert story.run.paused_reason == "step_failed"
    assert story.say("resume") is None
    assert story.attempt.state == "intent"


def policy_asks(agent_id: str, tool_name: str) -> Ground:
    return Ground(traits=Traits(requires_approval=True), deciders=frozenset({"user:ann"}))


@pytest.mark.parametrize(("manual", "then"), [(True, of_risk("high")), (False, Said(policy_asks))])
def test_what_was_asked_while_the_call_waited_to_be_sent_again_is_good_for_one_call_too(
    manual: bool, then: Said
) -> None:
    """That call goes with the number of the one that was not sent: it is an attempt after the approval all the same."""
    story = Story(step(manual=manual))
    if manual:
        approve(story)
    story.bounce("gateway_unavailable")
    story.grounds = then
    story.wait(2_000)
    for number in (1, 2):
        assert story.run.paused_reason == "awaiting_approval"
        assert story.attempt.state == ("unsent" if number == 1 else "failed")
        approve(story)
        assert story.run.steps[0].attempts == number
        story.hear(failed(story.req))
        assert story.say("resume") is None


def test_a_call_that_was_not_sent_does_not_hide_one_that_was() -> None:
    """Policy asked, did not ask while the second call was intended, and asks again while that waits to be sent."""
    story = Story(step(), grounds=Said(policy_asks))
    approve(story)
    story.hear(failed(story.req))
    story.grounds = Said()
    assert story.say("resume") is None
    story.bounce("gateway_unavailable")
    story.grounds = Said(policy_asks)
    story.wait(2_000)
    assert story.run.paused_reason == "awaiting_approval"
    assert "did not succeed" in story.rows("step.paused")[-1]["voids"]


def test_a_step_without_such_terms_is_tried_again_as_in_v0() -> None:
    story = Story(step(manual=True, expires_in_ms=1_000_000, instructions="look"), grounds=of_risk("medium"))
    assert story.say("resume") is None
    for _ in range(3):
        story.hear(failed(story.req))
        assert story.say("resume") is None
    story.hear(done(story.req))
    assert story.run.status == "completed"
    assert len(story.rows("step.approved")) == 1


def test_a_call_that_was_surely_not_sent_goes_again_as_it_was_approved() -> None:
    story = Story(step(manual=True), grounds=of_risk("high"))
    approve(story)
    story.bounce("gateway_unavailable")
    story.wait(2_000)
    assert story.attempt.state == "intent"
    assert story.run.status == "running"


def test_a_harmless_call_of_unknown_outcome_is_repeated_by_the_engine_as_it_was_approved() -> None:
    story = Story(step(manual=True, idempotent=True, timeout_ms=400), grounds=of_risk("high"))
    approve(story)
    story.wait(12_000)
    assert story.run.steps[0].attempts > 1


@pytest.mark.parametrize(("hash_now", "kept"), [("b" * 64, False), ("a" * 64, True)])
def test_an_edit_does_not_outlive_the_schema_that_it_was_validated_by(hash_now: str, kept: bool) -> None:
    known: dict[str, Any] = {"hash": "a" * 64, "risk": "low"}

    def say(agent_id: str, tool_name: str) -> Ground:
        return Ground(traits=Traits(risk=known["risk"]), schema_hash=known["hash"])

    story = Story(step(manual=True, allow_edit=True), grounds=Said(say))
    assert story.say("edit", step_id="a", arguments='{"n":2}') is None
    known |= {"hash": hash_now, "risk": "high"}
    story.turn()
    assert story.run.revision is not None
    assert (story.run.revision.number, story.run.revision.edited) == (3, '{"n":2}' if kept else None)
