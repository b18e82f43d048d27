"""Who may not use an agent: warned when the workflow is saved, refused when a run of it is made."""

from __future__ import annotations

from typing import Any

import pytest
import uuid_utils.compat as uuid7

from tests.api.harness import AGENT, Answer, Stack, step
from tests.api.test_agents import AGENTS, bound, granted

FLOWS = "/v1/workflows"
RUNS = "/v1/workflow-runs"


async def _saved(stack: Stack, *steps: dict[str, Any], sub: str = "ann") -> Any:
    made = await stack.post(FLOWS, {"title": "T", "spec": {"steps": list(steps)}}, sub=sub)
    assert made.status == 200, made.body
    return made.body


async def _started(stack: Stack, workflow: Any, sub: str = "ann", **said: Any) -> Answer:
    return await stack.post(RUNS, {"workflow_id": workflow["workflow_id"], **said}, sub=sub)


async def test_a_workflow_is_saved_with_warnings_and_without_any_once_all_is_well(strict: Stack) -> None:
    await bound(strict, "laptop", "bob")
    policy = {"tools": "slow", "denied": True}
    assert (await strict.ask("POST", "/v1/tool-policies", sub="root", json=policy)).status == 200
    await bound(strict, "mine")
    steps = (step("a"), step("b", agent="laptop"), step("c", "slow", agent="mine"), step("d", agent="mine"))
    saved = await _saved(strict, *steps)
    told = [(one["step_id"], one["agent_id"], one["code"]) for one in saved["warnings"]]
    assert told == [
        ("a", AGENT, "agent_unauthorized"),
        ("b", "laptop", "agent_unauthorized"),
        ("c", "mine", "tool_denied"),
    ]
    for one in saved["warnings"]:
        assert repr(one["agent_id"]) in one["message"]
    place = f"{FLOWS}/{saved['workflow_id']}"
    renewed = await strict.ask("PUT", place, json={"title": "T", "spec": {"steps": list(steps[1:3])}})
    assert [one["step_id"] for one in renewed.body["warnings"]] == ["b", "c"]
    good = await strict.ask("PUT", place, json={"title": "T", "spec": {"steps": [steps[3]]}})
    assert "warnings" not in good.body
    assert "warnings" not in (await strict.ask("GET", place)).body


async def test_a_run_with_anothers_agent_is_refused_and_says_which_and_why(strict: Stack) -> None:
    await bound(strict, AGENT, "ann")
    await bound(strict, "other", "ann")
    saved = await _saved(strict, step("a"), step("b", agent="other"), sub="bob")
    refused = await _started(strict, saved, "bob")
    assert (refused.status, refused.body["code"]) == (403, "agent_unauthorized")
    assert all(word in refused.body["detail"] for word in ("'a'", repr(AGENT), "ann"))
    await granted(strict, "user:bob", "use")
    refused = await _started(strict, saved, "bob", run_timeout_ms=60_000)
    assert all(word in refused.body["detail"] for word in ("'b'", "'other'"))
    assert await strict.sql("SELECT FROM workflow_runs") == []
    told = await strict.sql("SELECT actor, action, code, agent_id, target FROM audit_log WHERE outcome = 'refused'")
    assert [tuple(line) for line in told] == [
        ("bob", "run.created", "agent_unauthorized", agent, saved["workflow_id"]) for agent in (AGENT, "other")
    ]
    await granted(strict, "user:bob", "use", "other")
    assert (await _started(strict, saved, "bob")).status == 200


@pytest.mark.parametrize(
    ("grant", "allowed"),
    [
        ({"subject": "group:team", "permission": "use"}, True),
        ({"subject": "user:gus", "permission": "use", "tools": ["o*"]}, True),
        ({"subject": "user:gus", "permission": "use", "tools": ["s*", "okay"]}, False),
        ({"subject": "user:gus", "permission": "approve"}, False),
        ({"subject": "group:team", "permission": "view"}, False),
        ({"subject": "user:team", "permission": "use"}, False),
        ({"subject": "group:gus", "permission": "use"}, False),
    ],
)
async def test_what_was_granted_decides(strict: Stack, grant: dict[str, Any], allowed: bool) -> None:
    await bound(strict)
    await granted(strict, **grant)
    saved = await _saved(strict, step("a"), sub="gus")
    assert ("warnings" in saved) != allowed
    assert (await _started(strict, saved, "gus")).status == (200 if allowed else 403)


async def test_a_grant_that_is_over_gives_nothing(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "user:bob", "use", expires_at="2099-01-01T00:00:00Z")
    saved = await _saved(strict, step("a"), sub="bob")
    await strict.sql("UPDATE agent_grants SET expires_at = now() - interval '1 ms'")
    refused = await _started(strict, saved, "bob")
    assert "over" in refused.body["detail"]


async def test_what_was_revoked_refuses_the_next_run(strict: Stack) -> None:
    await bound(strict)
    grant_id = await granted(strict, "user:bob", "use")
    saved = await _saved(strict, step("a"), sub="bob")
    assert (await _started(strict, saved, "bob")).status == 200
    assert (await strict.ask("DELETE", f"{AGENTS}/{AGENT}/grants/{grant_id}", sub="ann")).status == 200
    assert (await _started(strict, saved, "bob")).status == 403


async def test_an_agent_of_nobody_is_the_admins(strict: Stack) -> None:
    for sub, status in (("ann", 403), ("root", 200)):
        assert (await _started(strict, await _saved(strict, step("a"), sub=sub), sub)).status == status


async def test_a_run_keeps_as_whom_it_acts(strict: Stack) -> None:
    await bound(strict)
    await granted(strict, "group:night", "use")
    for sub, more in (("gus", {}), ("gus", {"run_timeout_ms": 60_000}), ("ann", {})):
        assert (await _started(strict, await _saved(strict, step("a"), sub=sub), sub, **more)).status == 200
    await strict.ask("DELETE", f"{AGENTS}/{AGENT}/binding", sub="root")
    assert (await _started(strict, await _saved(strict, step("a"), sub="root"), "root")).status == 200
    kept = await strict.sql("SELECT principal #>> '{}' FROM workflow_run_specs ORDER BY run_id")
    gus = '{"groups":["night","team"],"admin":false}'
    assert [row[0] for row in kept] == [gus, gus, '{"groups":[],"admin":false}', '{"groups":[],"admin":true}']


async def test_a_refused_request_leaves_its_key_free_and_a_repeated_one_its_answer(strict: Stack) -> None:
    await bound(strict)
    saved = await _saved(strict, step("a"), sub="bob")
    key = {"Idempotency-Key": str(uuid7.uuid7())}
    body = {"workflow_id": saved["workflow_id"]}
    assert (await strict.ask("POST", RUNS, sub="bob", json=body, headers=key)).status == 403
    grant_id = await granted(strict, "user:bob", "use")
    first = await strict.ask("POST", RUNS, sub="bob", json=body, headers=key)
    assert first.status == 200
    await strict.ask("DELETE", f"{AGENTS}/{AGENT}/grants/{grant_id}", sub="ann")
    again = await strict.ask("POST", RUNS, sub="bob", json=body, headers=key)
    assert (again.status, again.body["run_id"]) == (200, first.body["run_id"])


async def test_terms_that_nobody_can_meet_are_warned_of_where_a_workflow_is_saved(strict: Stack) -> None:
    """Until somebody is named, or policy asks others."""
    terms: dict[str, dict[str, Any]] = {
        "a": {"quorum": 2},
        "b": {"forbid_self": True},
        "c": {"quorum": 2, "approvers": ["group:ops"]},
        "d": {"allow_edit": True},
    }
    steps = [step(name, approval_policy="manual", approval=one) for name, one in terms.items()]
    saved = await strict.post("/v1/workflows", {"title": "T", "spec": {"steps": steps}})
    told = {one["step_id"] for one in saved.body["warnings"] if one["code"] == "approval_unreachable"}
    assert told == {"a", "b"}


async def test_whoever_is_named_and_may_not_approve_is_no_approver_in_these_warnings(strict: Stack) -> None:
    """Whoever saves the workflow starts its runs; and who made their service token counts as that."""
    terms: dict[str, dict[str, Any]] = {
        "a": {"forbid_self": True, "approvers": ["user:ghost", "user:root"]},
        "b": {"forbid_self": True, "approvers": ["user:ghost", "user:bob"]},
        "c": {"forbid_self": True, "approvers": ["user:ghost", "group:ops"]},
        "d": {"approvers": ["user:ghost", "user:root"], "quorum": 2},
        "e": {"approvers": ["user:ghost", "user:root"], "quorum": 3},
        "f": {"approvers": ["user:root"]},
    }
    steps = [step(name, approval_policy="manual", approval=one) for name, one in terms.items()]
    wanted = {"name": "robot", "scopes": ["operator"], "user_id": "ghost"}
    made = await strict.post("/v1/service-tokens", wanted, sub="root")
    strict.tokens["robot"] = made.body["token"]
    for sub, expected in (("robot", {"a", "e"}), ("ghost", {"e"})):
        saved = await strict.post("/v1/workflows", {"title": "T", "spec": {"steps": steps}}, sub=sub)
        told = {one["step_id"] for one in saved.body["warnings"] if one["code"] == "approval_unreachable"}
        assert told == expected, sub
