"""Approvals over the API: what is frozen, who says yes to what, and what becomes of it. A test for each sentence."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest

from tests.api.case import COUNTED, Case, digest_of, outcome
from tests.api.harness import Tools
from tests.patience import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
WRONG = "sha256:" + "0" * 64


async def test_a_step_that_waits_freezes_the_call_and_its_digest_is_over_just_that(case: Case) -> None:
    run_id, approval = await case.waiting(case.manual(instructions="Count with care."))
    schema = json.dumps(COUNTED, sort_keys=True, separators=(",", ":"))
    assert approval["schema_hash"] == hashlib.sha256(schema.encode()).hexdigest()
    assert (approval["agent_id"], approval["tool_name"]) == (case.agent_id, "counted")
    assert (approval["timeout_ms"], approval["revision"], approval["state"]) == (60_000, 1, "open")
    assert approval["digest"] == digest_of(approval, {"n": 1})
    (card,) = await case.events(run_id, "step.paused")
    for name in ("agent_id", "tool_name", "schema_hash", "timeout_ms", "digest", "revision", "risk", "writes"):
        assert card[name] == approval[name]
    assert (card["arguments"], card["instructions"]) == ({"n": 1}, "Count with care.")
    assert case.ran == []


async def test_the_run_says_who_approved_what_and_the_tool_gets_exactly_that(case: Case) -> None:
    run_id, approval = await case.waiting()
    said = await case.say(run_id, "approve", "ann", digest=approval["digest"], comment="go")
    assert said.status == 200
    run = await case.until(run_id, "completed")
    state = run["steps_state"]["a"]
    assert (state["approved_by"], state["approval"]["state"]) == ("ann", "approved")
    (vote,) = state["approval"]["votes"]
    assert (vote["by"], vote["digest"], vote["comment"]) == ("ann", approval["digest"], "go")
    assert vote["roles"] == ["approver", "operator", "viewer"]
    assert vote["address"] == "127.0.0.1"
    assert case.given == [{"n": 1}]
    (line,) = await case.stack.sql("SELECT * FROM audit_log WHERE run_id = $1 AND action = 'run.approve'", run_id)
    assert (line["actor"], line["digest"], line["comment"]) == ("ann", approval["digest"], "go")
    (kept,) = await case.stack.sql("SELECT arguments::text FROM workflow_run_attempts WHERE run_id = $1", run_id)
    assert json.loads(kept["arguments"]) == {"n": 1}


async def test_a_service_token_speaks_as_its_user_and_the_vote_says_that_it_did(case: Case) -> None:
    run_id, approval = await case.waiting(case.manual(approvers=["user:ned", "user:ada"], quorum=2))
    made = await case.ok("POST", "/v1/service-tokens", "ned", {"name": "n", "scopes": ["approver"]})
    case.stack.tokens["robot"] = made["token"]
    for sub in ("robot", "ned"):
        assert (await case.say(run_id, "approve", sub, digest=approval["digest"])).status == 200
    run = await case.until(run_id, "paused", "awaiting_approval")
    (vote,) = run["steps_state"]["a"]["approval"]["votes"]
    assert (vote["by"], vote["via"], vote["roles"]) == ("ned", f"token:{made['token_id']}", ["approver", "viewer"])


async def test_a_key_that_somebody_used_approves_nothing_for_anybody_else(case: Case) -> None:
    run_id, approval = await case.waiting(case.manual(approvers=["user:ned", "user:ada"], quorum=2))
    body, key = {"step_id": "a", "digest": approval["digest"]}, {"Idempotency-Key": f"key-{run_id}"}
    for sub, votes in (("ned", 1), ("ned", 1), ("ada", 2)):
        path = f"/v1/workflow-runs/{run_id}/approve"
        said = await case.stack.ask("POST", path, sub=sub, json=body, headers=key)
        assert said.status == 200
        assert len(said.body["steps_state"]["a"]["approval"]["votes"]) == votes
    await case.until(run_id, "completed")


async def test_a_quorum_is_of_distinct_people(case: Case) -> None:
    named = {"approvers": ["user:ned", "user:ada", "group:team"], "quorum": 2}
    run_id, approval = await case.waiting(case.manual(**named))
    for _ in range(3):
        assert (await case.say(run_id, "approve", "ned", digest=approval["digest"])).status == 200
    assert (await case.until(run_id, "paused", "awaiting_approval"))["steps_state"]["a"]["approval"]["state"] == "open"
    (told,) = await case.events(run_id, "step.voted")
    assert (told["by"], told["votes"], told["quorum"]) == ("ned", 1, 2)
    assert case.ran == []
    assert (await case.say(run_id, "approve", "gus", digest=approval["digest"])).status == 200
    await case.until(run_id, "completed")


async def test_whoever_started_it_may_not_approve_where_that_is_forbidden(case: Case) -> None:
    run_id, _ = await case.waiting(case.manual(approvers=["user:ann", "user:ned"], forbid_self=True))
    assert outcome(await case.say(run_id, "approve", "ann")) == (403, "not_an_approver")
    assert outcome(await case.say(run_id, "resume", "ann")) == (409, "use_approve")
    assert (await case.say(run_id, "approve", "ned")).status == 200
    await case.until(run_id, "completed")


@pytest.mark.parametrize(
    ("terms", "tool"),
    [
        ({"approvers": ["user:ann", "user:ned"], "quorum": 2}, "counted"),
        ({"allow_edit": True}, "counted"),
        ({}, "wipes"),
    ],
)
async def test_the_digest_is_required_with_a_quorum_with_edits_and_at_high_risk(
    case: Case, terms: dict[str, Any], tool: str
) -> None:
    run_id, approval = await case.waiting(case.manual(tool, **terms))
    assert outcome(await case.say(run_id, "approve", "ann")) == (409, "digest_required")
    assert outcome(await case.say(run_id, "approve", "ann", digest=WRONG)) == (409, "digest_mismatch")
    assert outcome(await case.say(run_id, "resume", "ann")) == (409, "use_approve")
    assert (await case.say(run_id, "approve", "ann", digest=approval["digest"])).status == 200


async def test_elsewhere_it_may_be_left_out_but_not_be_wrong_and_resume_approves(case: Case) -> None:
    for verb, said in (("approve", {}), ("resume", {})):
        run_id, _ = await case.waiting()
        assert outcome(await case.say(run_id, "approve", "ann", digest=WRONG)) == (409, "digest_mismatch")
        assert (await case.say(run_id, verb, "ann", **said)).status == 200
        assert (await case.until(run_id, "completed"))["steps_state"]["a"]["approved_by"] == "ann"


async def test_an_edit_makes_a_new_revision_without_votes_and_keeps_the_difference(case: Case) -> None:
    terms = {"approvers": ["user:ann", "user:ned", "user:ada"], "quorum": 2, "allow_edit": True}
    run_id, first = await case.waiting(case.manual(**terms))
    await case.say(run_id, "approve", "ned", digest=first["digest"])
    edited = await case.say(run_id, "edit", "ada", digest=first["digest"], arguments={"n": 7}, comment="more")
    second = edited.body["steps_state"]["a"]["approval"]
    assert (second["revision"], second["votes"], second["edited_by"]) == (2, [], "ada")
    assert second["digest"] == digest_of(second, {"n": 7})
    (told,) = await case.events(run_id, "step.edited")
    assert told["diff"] == [{"path": "/n", "op": "replace", "before": 1, "after": 7}]
    assert (told["by"], told["comment"]) == ("ada", "more")
    assert outcome(await case.say(run_id, "approve", "ann", digest=first["digest"])) == (409, "digest_mismatch")
    for sub in ("ann", "ned"):
        assert case.given == []
        assert (await case.say(run_id, "approve", sub, digest=second["digest"])).status == 200
    await case.until(run_id, "completed")
    assert case.given == [{"n": 7}]
    rows = await case.stack.sql(
        "SELECT revision, state FROM workflow_run_approvals WHERE run_id = $1 ORDER BY revision", run_id
    )
    assert [tuple(row) for row in rows] == [(1, "superseded"), (2, "approved")]
    (kept,) = await case.stack.sql("SELECT arguments::text FROM workflow_run_attempts WHERE run_id = $1", run_id)
    assert json.loads(kept["arguments"]) == {"n": 7}


async def test_whoever_edited_a_call_does_not_approve_it_where_nobody_approves_their_own(case: Case) -> None:
    terms = {"approvers": ["user:ned", "user:ada"], "forbid_self": True, "allow_edit": True}
    run_id, _ = await case.waiting(case.manual(**terms))
    approval = (await case.say(run_id, "edit", "ned", arguments={"n": 2})).body["steps_state"]["a"]["approval"]
    refused = await case.say(run_id, "approve", "ned", digest=approval["digest"])
    assert outcome(refused) == (403, "not_an_approver")
    assert (await case.say(run_id, "approve", "ada", digest=approval["digest"])).status == 200


@pytest.mark.parametrize(
    ("arguments", "faults"),
    [
        ({"n": 0}, ["/arguments/n"]),
        ({}, ["/arguments"]),
        ({"n": 1, "m": 2}, ["/arguments"]),
        ({"n": "1"}, ["/arguments/n"]),
    ],
)
async def test_an_edit_must_be_what_the_tool_takes(case: Case, arguments: Any, faults: list[str]) -> None:
    run_id, approval = await case.waiting(case.manual(allow_edit=True))
    refused = await case.say(run_id, "edit", "ann", arguments=arguments)
    assert outcome(refused) == (422, "invalid_arguments")
    assert [fault["path"] for fault in refused.body["errors"]] == faults
    assert (await case.stack.run(run_id))["steps_state"]["a"]["approval"] == approval


async def test_an_edit_is_refused_where_nobody_allowed_it_or_the_tool_cannot_be_asked(case: Case) -> None:
    run_id, _ = await case.waiting()
    assert outcome(await case.say(run_id, "edit", "ann", arguments={"n": 2})) == (409, "edit_not_allowed")
    run_id, _ = await case.waiting(case.manual(allow_edit=True))
    await case.stack.gateway.disconnect(case.agent_id)
    assert outcome(await case.say(run_id, "edit", "ann", arguments={"n": 2})) == (409, "agent_offline")


@pytest.mark.parametrize("big", [2**53 + 1, -(2**53) - 1])
async def test_integers_that_would_be_rounded_are_refused_in_specs_and_in_edits(case: Case, big: int) -> None:
    for value, status in ((big, 422), (big - 1 if big > 0 else big + 1, 200)):
        spec = {"title": "T", "spec": {"steps": [case.auto("ok", arguments={"deep": [value]})]}}
        saved = await case.stack.post("/v1/workflows", spec)
        assert saved.status == status, saved.body
    run_id, _ = await case.waiting(case.manual(allow_edit=True))
    refused = await case.say(run_id, "edit", "ann", arguments={"n": abs(big)})
    assert outcome(refused) == (422, "invalid_arguments")
    assert (await case.say(run_id, "edit", "ann", arguments={"n": 2**53})).status == 200


async def test_rejected_is_the_end_or_the_next_step_where_errors_are_gone_over(case: Case) -> None:
    run_id, _ = await case.waiting()
    assert (await case.say(run_id, "reject", "ann", reason="no")).status == 200
    run = await case.until(run_id, "failed")
    assert run["error_code"] == "approval_rejected"
    state = run["steps_state"]["a"]
    assert (state["status"], state["decided_by"], state["note"]) == ("rejected", "ann", "no")
    assert state["approval"]["state"] == "rejected"
    run_id, _ = await case.waiting(case.manual(on_error="continue"), case.auto("ok", "b"))
    assert (await case.say(run_id, "reject", "ann")).status == 200
    run = await case.until(run_id, "completed")
    assert [run["steps_state"][name]["status"] for name in "ab"] == ["rejected", "success"]
    assert case.ran == ["ok"]


async def test_one_no_is_enough_whatever_the_quorum(case: Case) -> None:
    run_id, approval = await case.waiting(case.manual(approvers=["user:ned", "user:ada", "user:ann"], quorum=3))
    for sub in ("ned", "ada"):
        await case.say(run_id, "approve", sub, digest=approval["digest"])
    assert outcome(await case.say(run_id, "reject", "bob")) == (404, "not_found")
    assert (await case.say(run_id, "reject", "ned")).status == 200
    assert (await case.until(run_id, "failed"))["error_code"] == "approval_rejected"


async def test_what_expires_ends_stays_or_is_gone_over_and_says_so(case: Case) -> None:
    soon: dict[str, Any] = {"expires_in_ms": 4_000, "approvers": ["user:ned", "user:ann"], "quorum": 2}
    ends = (await case.waiting(case.manual(on_expiry="reject", **soon)))[0]
    on = (await case.waiting(case.manual(on_error="continue", on_expiry="reject", **soon), case.auto("ok", "b")))[0]
    stays, first = await case.waiting(case.manual(on_expiry="stay", **soon))
    assert first["expires_at"] - first["opened_at"] == 4_000
    assert (await case.say(stays, "approve", "ned", digest=first["digest"])).status == 200
    run = await case.until(ends, "failed")
    assert (run["error_code"], run["steps_state"]["a"]["status"]) == ("approval_expired", "expired")
    run = await case.until(on, "completed")
    assert [run["steps_state"][name]["status"] for name in "ab"] == ["expired", "success"]
    (told,) = await case.events(on, "step.expired")
    assert told["step_id"] == "a"

    async def told_late() -> Any:
        approval = (await case.stack.run(stays))["steps_state"]["a"]["approval"]
        return approval if approval["expired_at"] is not None else None

    approval = await eventually(told_late, what="the approval being late")
    assert (approval["state"], approval["votes"], approval["expires_at"]) == ("open", [], None)
    assert approval["expired_at"] >= first["expires_at"]
    for sub in ("ned", "ann"):
        assert (await case.say(stays, "approve", sub, digest=approval["digest"])).status == 200
    await case.until(stays, "completed")
    assert case.ran == ["ok", "counted"]


async def test_a_word_about_another_step_another_pause_or_no_pause_is_refused(case: Case) -> None:
    run_id, _ = await case.waiting(case.manual(), case.manual("ok", "b"))
    wrong = await case.stack.decide(run_id, "approve", {"step_id": "b"})
    assert outcome(wrong) == (409, "wrong_step")
    assert (await case.say(run_id, "approve", "ann")).status == 200
    await case.until(run_id, "paused", "awaiting_approval")
    assert outcome(await case.say(run_id, "approve", "ann")) == (409, "wrong_step")
    assert (await case.say(run_id, "cancel", "ann")).status == 200
    assert outcome(await case.say(run_id, "approve", "ann")) == (409, "not_paused")
    assert (await case.stack.run(run_id))["steps_state"]["b"]["approval"]["state"] == "closed"
    assert case.ran == ["counted"]


async def test_of_two_who_decide_at_once_one_is_heard(case: Case) -> None:
    run_id, _ = await case.waiting()
    words = [case.say(run_id, verb, "ann") for verb in ("approve", "reject", "approve", "reject")]
    answers = await asyncio.gather(*words)
    assert min(answer.status for answer in answers) == 200
    events = [len(await case.events(run_id, kind)) for kind in ("step.approved", "step.rejected")]
    assert sorted(events) == [0, 1]


async def test_an_agent_that_nobody_could_ask_has_no_schema_to_freeze(case: Case) -> None:
    await case.stack.gateway.disconnect(case.agent_id)
    run_id, approval = await case.waiting()
    assert approval["schema_hash"] is None
    assert approval["digest"] == digest_of(approval, {"n": 1})
    await case.stack.gateway.connect(Tools(case.agent_id))
    assert (await case.say(run_id, "reject", "ann")).status == 200
