"""The inbox: what waits for whom, oldest first, page by page, and several words at once with a result for each."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from daemon.store import approvals
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


async def pages(case: Case, sub: str, limit: int = 200) -> list[list[str]]:
    """The runs of each page, of this case's agent."""
    found: list[list[str]] = []
    query = f"?limit={limit}"
    while query:
        page = await case.ok("GET", f"/v1/approvals{query}", sub)
        found.append([item["run_id"] for item in page["items"] if item["agent_id"] == case.agent_id])
        query = f"?limit={limit}&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    return found


async def large(case: Case, *thousands: int, letter: str = "x") -> list[str]:
    """Runs whose calls, of so many thousand bytes, wait for somebody whom nothing else asks: ``size-<agent>``."""
    runs = []
    for number in thousands:
        terms = {"approvers": [f"user:size-{case.agent_id}"], "allow_edit": True}
        text = letter * (1000 * number // len(letter.encode()))
        call = case.auto("ok", approval_policy="manual", approval=terms, arguments={"text": text})
        runs.append((await case.waiting(call))[0])
    return runs


async def test_a_page_ends_early_where_its_calls_are_large_and_the_cursor_goes_on(case: Case) -> None:
    runs = await large(case, 400, 400, 400, 1, 1, 900, 1)
    sub = f"size-{case.agent_id}"
    assert await pages(case, sub) == [runs[:2], runs[2:5], runs[5:]]
    assert await pages(case, sub, limit=1) == [[run_id] for run_id in runs]
    whole = await case.ok("GET", "/v1/approvals?limit=200", sub)
    assert len(orjson.dumps(whole)) < approvals.PAGE_BYTES + 10_000
    assert whole["items"][0]["arguments"] == {"text": "x" * 400_000}


async def test_a_call_that_is_larger_than_a_page_is_a_page_and_no_more_is_read_than_a_page_takes(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approvals, "PAGE_BYTES", 50_000)
    monkeypatch.setattr(approvals, "AT_ONCE", 2)
    read: list[int] = []
    real = approvals.Request.size.fget
    assert real is not None

    def size(request: approvals.Request) -> int:
        read.append(real(request))
        return read[-1]

    monkeypatch.setattr(approvals.Request, "size", property(size))
    runs = await large(case, 100, 100, 1, 1, 1, 1, letter="\u00e9")
    sub = f"size-{case.agent_id}"
    first = await case.ok("GET", "/v1/approvals", sub)
    assert [item["run_id"] for item in first["items"]] == runs[:1]
    assert len(read) == 2
    assert await pages(case, sub) == [runs[:1], runs[1:2], runs[2:]]
    assert await pages(case, sub, limit=3) == [runs[:1], runs[1:2], runs[2:5], runs[5:]]


async def test_an_edited_call_counts_as_it_is(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, sub = await large(case, 1, 1), f"size-{case.agent_id}"
    monkeypatch.setattr(approvals, "PAGE_BYTES", 5_000)
    assert await pages(case, sub) == [runs]
    assert (await case.say(runs[0], "edit", sub, arguments={"text": "y" * 6_000})).status == 200
    assert await pages(case, sub) == [runs[1:], runs[:1]], "an edit asks anew, so it stands last"


async def test_a_page_whose_calls_were_all_decided_meanwhile_is_empty_and_goes_on(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, sub = await large(case, 1, 1, 1), f"size-{case.agent_id}"
    told = approvals._TOLD
    monkeypatch.setattr(approvals, "_TOLD", told.replace("a.state = 'open'", "a.state = 'approved'"))
    first = await case.ok("GET", "/v1/approvals?limit=2", sub)
    assert first["items"] == []
    monkeypatch.setattr(approvals, "_TOLD", told)
    rest = await case.ok("GET", f"/v1/approvals?limit=2&cursor={first['next_cursor']}", sub)
    assert ([item["run_id"] for item in rest["items"]], rest["next_cursor"]) == (runs[2:], None)


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
