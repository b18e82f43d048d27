"""Rights come first: whoever has no say in a call hears that, and nothing of its run's state or of what they sent."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.api import refusals
from tests.api.auditing import lines
from tests.api.case import Case, outcome

pytestmark = pytest.mark.asyncio(loop_scope="module")
WRONG = "sha256:" + "0" * 64
TERMS: dict[str, Any] = {"approvers": ["user:ned"], "allow_edit": True}
FORBIDDEN = (403, "not_an_approver")
UNSEEN = (404, "not_found")

WORDS: dict[str, tuple[str, dict[str, Any]]] = {
    "approve": ("approve", {}),
    "approve with another digest": ("approve", {"digest": WRONG}),
    "approve a step that there is not": ("approve", {"step_id": "z"}),
    "reject": ("reject", {}),
    "reject with another digest": ("reject", {"digest": WRONG}),
    "edit": ("edit", {"arguments": {"n": 2}}),
    "edit to what the tool does not take": ("edit", {"arguments": {"n": "many"}}),
    "edit to what the Gateway would round": ("edit", {"arguments": {"n": 2**60}}),
    "edit a step that there is not": ("edit", {"step_id": "z", "arguments": {"n": 2}}),
}


async def waits(case: Case) -> str:
    return (await case.waiting(case.manual(**TERMS)))[0]


async def waits_without_edits(case: Case) -> str:
    return (await case.waiting(case.manual(approvers=["user:ned"])))[0]


async def failed_at_it(case: Case) -> str:
    run_id, approval = await case.waiting(case.manual("failing", **TERMS))
    assert (await case.say(run_id, "approve", "ned", digest=approval["digest"])).status == 200
    await case.until(run_id, "paused", "step_failed")
    return run_id


async def over(case: Case) -> str:
    run_id = await waits(case)
    await case.say(run_id, "cancel", "ann")
    return run_id


async def offline(case: Case) -> str:
    run_id = await waits(case)
    await case.stack.gateway.disconnect(case.agent_id)
    return run_id


STATES = {state.__name__: state for state in (waits, waits_without_edits, failed_at_it, over, offline)}


@pytest.mark.parametrize("state", STATES)
async def test_whoever_has_no_say_is_told_just_that_whatever_the_run_and_the_word_are(case: Case, state: str) -> None:
    run_id = await STATES[state](case)
    for name, (verb, said) in WORDS.items():
        for sub, told in (("ann", FORBIDDEN), ("root", FORBIDDEN), ("bob", UNSEEN), ("olga", UNSEEN)):
            assert outcome(await case.say(run_id, verb, sub, **said)) == told, (name, sub)


@pytest.mark.parametrize("state", STATES)
async def test_a_batch_says_the_same_and_leaves_the_same_lines(
    case: Case, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MOST", 10_000)  # of one caller in a minute; the tests before have had theirs
    run_id = await STATES[state](case)
    for verb, said in (WORDS[name] for name in WORDS if not name.startswith("edit")):
        comment = {"comment" if verb == "approve" else "reason": "mine"}
        assert outcome(await case.say(run_id, verb, "root", **said, **comment)) == FORBIDDEN
        word = {"run_id": run_id, "step_id": "a", "decision": verb, "comment": "mine", **said}
        for sub, told in (("root", FORBIDDEN), ("bob", UNSEEN)):
            batch = await case.ok("POST", "/v1/approvals/decide", sub, {"items": [word]})
            assert [(item["outcome"], item["code"]) for item in batch["items"]] == [("refused", told[1])]
        single, batched = (await lines(case.stack, f"?run_id={run_id}&actor=root"))[-2:]
        ours = single.keys() - {"id", "at", "detail"}
        assert {name: single[name] for name in ours} == {name: batched[name] for name in ours}
        assert single["detail"]["message"] == batched["detail"]["message"]
        assert (single["action"], single["outcome"], single["code"]) == (f"run.{verb}", "refused", FORBIDDEN[1])
        assert (single["agent_id"], single["comment"]) == (case.agent_id, "mine")
    assert await lines(case.stack, f"?run_id={run_id}&actor=bob") == []


async def test_whoever_has_a_say_is_told_what_stands_in_its_way(case: Case) -> None:
    told = {
        waits: {
            "approve": (409, "digest_required"),
            "approve a step that there is not": (409, "wrong_step"),
            "reject with another digest": (409, "digest_mismatch"),
            "edit to what the tool does not take": (422, "invalid_arguments"),
            "edit to what the Gateway would round": (422, "invalid_arguments"),
            "edit a step that there is not": (409, "wrong_step"),
        },
        waits_without_edits: {"edit": (409, "edit_not_allowed")},
        failed_at_it: {"approve": (409, "not_awaiting_approval"), "edit": (409, "not_awaiting_approval")},
        over: {"approve": (409, "not_paused"), "edit": (409, "not_paused"), "reject": (409, "not_paused")},
        offline: {"edit": (409, "agent_offline")},
    }
    for state, answers in told.items():
        run_id = await state(case)
        for name, answer in answers.items():
            verb, said = WORDS[name]
            assert outcome(await case.say(run_id, verb, "ned", **said)) == answer, (state.__name__, name)
        if state is offline:
            await case.stack.gateway.connect(case.tools)


async def test_it_is_the_step_that_is_named_whose_rights_count(case: Case) -> None:
    """Ned is asked about the first step, ada about the second; each sees the run since they were asked."""
    first, second = case.manual(**TERMS), case.manual(step_id="b", approvers=["user:ada"])
    run_id, approval = await case.waiting(first, second)
    assert outcome(await case.say(run_id, "reject", "ada")) == UNSEEN, "she was not asked yet"
    assert (await case.say(run_id, "approve", "ned", digest=approval["digest"])).status == 200

    await case.until(run_id, "paused", "awaiting_approval")
    assert outcome(await case.say(run_id, "reject", "ned")) == (409, "wrong_step"), "it was his, and is past"
    assert outcome(await case.say(run_id, "reject", "ned", step_id="b")) == FORBIDDEN
    assert outcome(await case.say(run_id, "reject", "ada")) == FORBIDDEN
    assert (await case.say(run_id, "reject", "ada", step_id="b")).status == 200


async def test_where_policy_asks_it_is_by_the_grants_that_stand(case: Case) -> None:
    await case.policy(requires_approval=True)
    run_id, _ = await case.waiting(case.auto())
    await case.say(run_id, "cancel", "ann")
    for sub, told in (("ann", FORBIDDEN), ("ada", (409, "not_paused")), ("olga", (409, "not_paused"))):
        assert outcome(await case.say(run_id, "approve", sub)) == told, sub
    await case.revoke("ada", "approve")
    assert outcome(await case.say(run_id, "approve", "ada")) == UNSEEN


async def test_whoever_edited_it_hears_that_they_may_not_approve_before_which_digest_they_lack(case: Case) -> None:
    run_id, first = await case.waiting(
        case.manual(approvers=["user:ned", "user:ada"], forbid_self=True, allow_edit=True)
    )
    assert (await case.say(run_id, "edit", "ned", arguments={"n": 2})).status == 200
    for digest in ({}, {"digest": first["digest"]}):
        assert outcome(await case.say(run_id, "approve", "ned", **digest)) == FORBIDDEN
    assert outcome(await case.say(run_id, "approve", "ada")) == (409, "digest_required")
    assert (await case.say(run_id, "reject", "ned")).status == 200
