"""Grants and policies where they count: before every call of a run, whatever was true when it began."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.api.case import Case, outcome
from tests.patience import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def in_the_middle(case: Case) -> str:
    """A run whose first step's tool is running, and whose second waits for it."""
    run_id = await case.run(case.auto("slow"), case.auto("ok", "b"))
    await eventually(lambda: case.tools.running == ["slow"], what="the tool running")
    return run_id


async def goes_on(case: Case, run_id: str) -> None:
    """Resumed until it is completed: a node that has not heard of the change yet pauses it once more."""

    async def over() -> bool:
        run = await case.stack.run(run_id)
        if run["paused_reason"] == "agent_unauthorized":
            await case.say(run_id, "resume", "ann")
        return bool(run["status"] == "completed")

    await eventually(over, what="the run going on")


# --- grants -----------------------------------------------------------------------------------------------------------


async def test_a_grant_revoked_in_the_middle_pauses_before_the_next_call_and_given_again_goes_on(case: Case) -> None:
    run_id = await in_the_middle(case)
    await case.revoke("ann", "use")
    case.tools.release.set()
    run = await case.until(run_id, "paused", "agent_unauthorized")
    assert run["steps_state"]["a"]["status"] == "success", "what was begun is not taken back"
    assert (run["error_code"], run["steps_state"]["b"]["attempts"]) == ("agent_unauthorized", [])
    assert all(word in run["error_message"] for word in (repr(case.agent_id), "'ann'", "olga"))
    (told,) = await case.events(run_id, "step.paused")
    assert (told["paused_reason"], told["step_id"]) == ("agent_unauthorized", "b")
    assert (await case.say(run_id, "resume", "ann")).status == 200
    await case.until(run_id, "paused", "agent_unauthorized")
    assert case.ran == ["slow"]
    await case.grant("ann", "use")
    await goes_on(case, run_id)
    assert case.ran == ["slow", "ok"]


async def test_so_does_a_binding_that_ends_and_the_run_can_be_canceled(case: Case) -> None:
    run_id = await in_the_middle(case)
    await case.ok("DELETE", f"/v1/bridge/agents/{case.agent_id}/binding", "root")
    case.tools.release.set()
    run = await case.until(run_id, "paused", "agent_unauthorized")
    assert "nobody" in run["error_message"]
    assert (await case.say(run_id, "cancel", "ann")).status == 200
    await case.until(run_id, "canceled", "user_cancel")
    assert case.ran == ["slow"]


async def test_a_call_that_runs_can_be_canceled_by_its_run_s_owner_whose_grant_is_gone(case: Case) -> None:
    run_id = await in_the_middle(case)
    await case.revoke("ann", "use")
    assert (await case.say(run_id, "cancel", "ann")).status == 200
    await eventually(lambda: [one.how for one in case.tools.intervals] == ["canceled"], what="the tool being stopped")


async def test_a_grant_that_is_over_by_the_next_call_counts_no_more(case: Case) -> None:
    await case.revoke("ann", "use")
    ends = datetime.now(UTC) + timedelta(seconds=1.5)
    await case.grant("ann", "use", expires_at=ends.isoformat())
    run_id = await in_the_middle(case)
    await eventually(lambda: datetime.now(UTC) > ends, what="the end of the grant")
    case.tools.release.set()
    run = await case.until(run_id, "paused", "agent_unauthorized")
    assert "over" in run["error_message"]
    assert case.ran == ["slow"]


async def test_a_grant_of_some_tools_is_of_those(case: Case) -> None:
    await case.revoke("ann", "use")
    await case.grant("ann", "use", tools=["s*"])
    saved = await case.stack.post(
        "/v1/workflows", {"title": "T", "spec": {"steps": [case.auto("slow"), case.auto("ok", "b")]}}
    )
    assert [one["step_id"] for one in saved.body["warnings"]] == ["b"]
    refused = await case.stack.post("/v1/workflow-runs", {"workflow_id": saved.body["workflow_id"]})
    assert outcome(refused) == (403, "agent_unauthorized")


async def test_an_approved_call_does_not_leave_once_its_owner_may_not_use_the_agent(case: Case) -> None:
    run_id, _ = await case.waiting()
    await case.revoke("ann", "use")
    await case.say(run_id, "approve", "ann")
    await case.until(run_id, "paused", "agent_unauthorized")
    assert case.ran == []


# --- policies ---------------------------------------------------------------------------------------------------------


async def test_what_a_tool_says_and_what_a_policy_says_of_it_is_shown_with_the_tools(case: Case) -> None:
    await case.policy("wip*", risk="medium", requires_approval=True)
    await case.policy("ok", denied=True)
    items = (await case.ok("GET", f"/v1/bridge/agents/{case.agent_id}/tools", "ann"))["tools"]
    told = {
        tool["name"]: tuple(tool[name] for name in ("risk", "writes", "open_world", "requires_approval", "denied"))
        for tool in items
    }
    assert told["counted"] == ("medium", True, True, False, False), "who says nothing writes, and to an open world"
    assert told["reads"] == ("low", False, False, False, False)
    assert told["wipes"] == ("medium", True, True, True, False), "a policy outweighs what a tool says of itself"
    assert told["ok"] == ("medium", True, True, False, True)
    assert {tool["name"]: tool["may_use"] for tool in items}["ok"] is False


async def test_policy_forces_the_gate_whatever_the_template_says_and_shows_it_everywhere(case: Case) -> None:
    await case.policy("counted", requires_approval=True, risk="high")
    run_id = await case.run(case.auto())
    run = await case.until(run_id, "paused", "awaiting_approval")
    approval = run["steps_state"]["a"]["approval"]
    (card,) = await case.events(run_id, "step.paused")
    (item,) = [one for one in (await case.ok("GET", "/v1/approvals", "ada"))["items"] if one["run_id"] == run_id]
    for shown in (approval, card, item):
        assert (shown["requires_approval"], shown["risk"], shown["writes"]) == (True, "high", True)
    assert run["workflow_snapshot"]["steps"][0]["approval_policy"] == "auto"
    for sub, told in (
        ("ann", (403, "not_an_approver")),
        ("root", (403, "not_an_approver")),
        ("bob", (404, "not_found")),
    ):
        assert outcome(await case.say(run_id, "approve", sub, digest=approval["digest"])) == told
    assert outcome(await case.say(run_id, "resume", "ann")) == (409, "use_approve")
    assert case.ran == []
    assert (await case.say(run_id, "approve", "ada", digest=approval["digest"])).status == 200
    assert (await case.until(run_id, "completed"))["steps_state"]["a"]["approved_by"] == "ada"
    assert case.ran == ["counted"]


async def test_policy_forces_the_gate_on_a_run_that_is_under_way(case: Case) -> None:
    run_id = await in_the_middle(case)
    await case.policy("ok", requires_approval=True)
    case.tools.release.set()
    run = await case.until(run_id, "paused", "awaiting_approval")
    assert run["steps_state"]["b"]["approval"]["requires_approval"] is True
    assert case.ran == ["slow"]
    assert (await case.stack.decide(run_id, "approve", {"step_id": "b"}, sub="olga")).status == 200
    await case.until(run_id, "completed")


async def test_what_policy_denies_is_not_called_by_anybody(case: Case) -> None:
    policy_id = await case.policy("ok", denied=True)
    run_id = await case.run(case.auto("ok"))
    run = await case.until(run_id, "paused", "agent_unauthorized")
    assert run["error_code"] == "tool_denied"
    assert "'ok'" in run["error_message"]
    await case.ok("DELETE", f"/v1/tool-policies/{policy_id}", "root")
    await goes_on(case, run_id)


async def test_where_policy_requires_it_an_open_question_is_asked_anew_of_those_who_may(case: Case) -> None:
    """The step was about to be approved by whoever started it when an admin said: this tool takes its owner's word."""
    run_id, first = await case.waiting()
    await case.passive(run_id)
    await case.policy("counted", requires_approval=True)

    async def asked() -> Any:
        items = (await case.ok("GET", "/v1/approvals", "olga"))["items"]
        return [item for item in items if item["run_id"] == run_id]

    (item,) = await eventually(asked, what="the agent's owner being asked")
    assert (item["revision"], item["requires_approval"]) == (2, True)
    rows = await case.stack.sql("SELECT state FROM workflow_run_approvals WHERE run_id = $1 ORDER BY revision", run_id)
    assert [row["state"] for row in rows] == ["voided", "open"]
    assert outcome(await case.say(run_id, "approve", "ann")) == (403, "not_an_approver")
    assert outcome(await case.say(run_id, "approve", "olga", digest="sha256:" + "0" * 64)) == (409, "digest_mismatch")
    assert (await case.say(run_id, "approve", "olga", digest=first["digest"])).status == 200, "the call is the same"
    await case.until(run_id, "completed")


async def test_nobody_has_anothers_agent_run_by_naming_it(case: Case) -> None:
    """v0's hole, from both ends: refused when the run is made, and before the call where it was made anyway."""
    saved = await case.stack.post("/v1/workflows", {"title": "T", "spec": {"steps": [case.auto("ok")]}}, sub="bob")
    assert [one["code"] for one in saved.body["warnings"]] == ["agent_unauthorized"]
    body = {"workflow_id": saved.body["workflow_id"]}
    assert outcome(await case.stack.post("/v1/workflow-runs", body, sub="bob")) == (403, "agent_unauthorized")
    hold_id = await case.hold()
    await case.grant("bob", "use")
    made = await case.stack.post("/v1/workflow-runs", body, sub="bob")
    await case.revoke("bob", "use")
    await case.release(hold_id)

    async def refused() -> bool:
        run = await case.stack.run(made.body["run_id"], sub="bob")
        return bool(run["paused_reason"] == "agent_unauthorized")

    await eventually(refused, what="the run being refused the agent")
    assert case.ran == []
