"""The inbox: what waits for whom, oldest first, page by page, and several words at once with a result for each."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.case import Case, outcome

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def inbox(case: Case, sub: str, query: str = "") -> list[Any]:
    """Of this case's agent."""
    items: list[Any] = (await case.ok("GET", f"/v1/approvals{query}", sub))["items"]
    return [item for item in items if item["agent_id"] == case.agent_id]


async def who_sees(case: Case, run_id: str) -> set[str]:
    people = ("ann", "bob", "olga", "ada", "ned", "gus", "root", "otto")
    return {sub for sub in people if run_id in {item["run_id"] for item in await inbox(case, sub)}}


async def test_it_tells_all_that_a_card_needs(case: Case) -> None:
    terms = {"approvers": ["user:ned"], "expires_in_ms": 60_000, "instructions": "Look.", "allow_edit": True}
    run_id, approval = await case.waiting(case.manual("wipes", **terms))
    (item,) = await inbox(case, "ned")
    assert (item["run_id"], item["step_id"], item["started_by"]) == (run_id, "a", "ann")
    for name in ("digest", "revision", "tool_name", "schema_hash", "opened_at", "expires_at", "risk", "quorum"):
        assert item[name] == approval[name]
    assert (item["risk"], item["needs_digest"], item["instructions"]) == ("high", True, "Look.")
    assert item["arguments"] == {}
    assert 0 <= item["age_ms"] < 60_000
    assert item["expires_at"] - item["opened_at"] == 60_000


@pytest.mark.parametrize(
    ("terms", "policy", "sees"),
    [
        ({}, False, {"ann"}),
        ({"approvers": ["user:ned", "group:team"]}, False, {"ned", "gus"}),
        ({"approvers": ["user:ned", "user:ann"], "forbid_self": True}, False, {"ned"}),
        ({}, True, {"olga", "ada"}),
        ({"approvers": ["user:ned", "user:ada"]}, True, {"ada"}),
    ],
)
async def test_it_is_of_those_who_may_decide(case: Case, terms: Any, policy: bool, sees: set[str]) -> None:
    if policy:
        await case.policy(requires_approval=True)
    run_id, _ = await case.waiting(case.manual(**terms))
    assert await who_sees(case, run_id) == sees


async def test_it_is_oldest_first_and_page_by_page(case: Case) -> None:
    await case.policy(requires_approval=True)
    runs = [(await case.waiting(case.auto()))[0] for _ in range(5)]
    assert [item["run_id"] for item in await inbox(case, "ada")] == runs
    found: list[str] = []
    query = "?limit=2"
    while query:
        page = await case.ok("GET", f"/v1/approvals{query}", "ada")
        found += [item["run_id"] for item in page["items"] if item["agent_id"] == case.agent_id]
        query = f"?limit=2&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert found == runs
    await case.say(runs[1], "reject", "ada")
    assert [item["run_id"] for item in await inbox(case, "ada")] == [runs[0], *runs[2:]]


async def test_what_was_said_of_it_waits_for_others_and_an_edit_asks_anew(case: Case) -> None:
    terms = {"approvers": ["user:ned", "user:ada"], "quorum": 2, "allow_edit": True}
    run_id, approval = await case.waiting(case.manual(**terms))
    assert await who_sees(case, run_id) == {"ned", "ada"}
    await case.say(run_id, "approve", "ned", digest=approval["digest"])
    assert await who_sees(case, run_id) == {"ada"}, "ned has said his word"
    await case.say(run_id, "edit", "ada", arguments={"n": 2})
    assert await who_sees(case, run_id) == {"ned", "ada"}


async def test_several_words_at_once_have_a_result_each(case: Case) -> None:
    yes, no, strange, wrong, over = [
        (await case.waiting(case.manual(approvers=["user:ned"], instructions=name)))[0] for name in "abcde"
    ]
    mine, _ = await case.waiting()
    await case.say(over, "cancel", "ann")
    items = [
        {"run_id": yes, "step_id": "a", "decision": "approve", "comment": "go"},
        {"run_id": no, "step_id": "a", "decision": "reject", "comment": "no"},
        {"run_id": strange, "step_id": "z", "decision": "approve"},
        {"run_id": wrong, "step_id": "a", "decision": "approve", "digest": "sha256:" + "0" * 64},
        {"run_id": over, "step_id": "a", "decision": "approve"},
        {"run_id": mine, "step_id": "a", "decision": "approve"},
        {"run_id": yes, "step_id": "a", "decision": "reject"},
    ]
    told = (await case.ok("POST", "/v1/approvals/decide", "ned", {"items": items}))["items"]
    assert [(item["run_id"], item["outcome"], item["code"]) for item in told] == [
        (yes, "applied", None),
        (no, "applied", None),
        (strange, "refused", "wrong_step"),
        (wrong, "refused", "digest_mismatch"),
        (over, "refused", "not_paused"),
        (mine, "refused", "not_found"),
        (yes, "refused", "named_twice"),
    ]
    run = await case.until(yes, "completed")
    assert run["steps_state"]["a"]["approved_by"] == "ned"
    assert (await case.until(no, "failed"))["steps_state"]["a"]["note"] == "no"
    for run_id in (strange, wrong, mine):
        assert (await case.stack.run(run_id))["paused_reason"] == "awaiting_approval"
    assert case.ran == ["counted"]


async def test_an_admin_sees_the_run_and_decides_nothing_that_they_were_not_asked(case: Case) -> None:
    run_id, _ = await case.waiting()
    items = [{"run_id": run_id, "step_id": "a", "decision": "approve"}]
    (told,) = (await case.ok("POST", "/v1/approvals/decide", "root", {"items": items}))["items"]
    assert (told["outcome"], told["code"]) == ("refused", "not_an_approver")


async def test_who_is_asked_sees_the_run_and_its_log_and_others_see_neither(case: Case) -> None:
    run_id, _ = await case.waiting(case.manual(approvers=["user:ned"]))
    for path in ("", "/history"):
        for sub, status in (("ned", 200), ("ann", 200), ("olga", 404), ("ada", 404), ("bob", 404), ("gus", 404)):
            found = await case.stack.ask("GET", f"/v1/workflow-runs/{run_id}{path}", sub=sub)
            assert found.status == status, (path, sub)
    assert outcome(await case.say(run_id, "cancel", "ned")) == (403, "not_your_run")
