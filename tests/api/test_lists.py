"""Runs and workflows in lists: newest first, filtered, searched, page by page; and a run's events as pages."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.api.answers import assert_problem
from tests.api.harness import Stack, step

RUNS = "/v1/workflow-runs"
FLOWS = "/v1/workflows"


async def named(stack: Stack, title: str, *steps: dict[str, Any], sub: str = "ann") -> str:
    """A workflow of this title."""
    body = {"title": title, "spec": {"steps": list(steps) or [step("a", approval_policy="manual")]}}
    made = await stack.post(FLOWS, body, sub=sub)
    workflow_id: str = made.body["workflow_id"]
    return workflow_id


async def begun(stack: Stack, workflow_id: str, *, sub: str = "ann") -> str:
    made = await stack.post(RUNS, {"workflow_id": workflow_id}, sub=sub)
    run_id: str = made.body["run_id"]
    return run_id


async def ids(stack: Stack, query: str = "", *, sub: str = "ann") -> list[str]:
    found = await stack.ask("GET", RUNS + query, sub=sub)
    assert found.status == 200, found.body
    return [item["run_id"] for item in found.body["items"]]


async def test_runs_are_listed_newest_first_and_page_by_page(live: Stack) -> None:
    workflow_id = await named(live, "Deploy")
    runs = [await begun(live, workflow_id) for _ in range(5)]
    seen: list[str] = []
    cursor = ""
    for expected in (2, 2, 1):
        page = (await live.ask("GET", f"{RUNS}?limit=2{cursor}")).body
        assert len(page["items"]) == expected
        seen += [item["run_id"] for item in page["items"]]
        cursor = f"&cursor={page['next_cursor']}"
        await begun(live, await named(live, "Later"))
    assert page["next_cursor"] is None
    assert seen == runs[::-1], "what is new does not move the pages behind it"


async def test_an_item_says_what_a_list_shows_and_no_more(live: Stack) -> None:
    run_id = await begun(live, workflow_id := await named(live, "Deploy", step("a"), step("b")))
    await live.until(run_id, "completed")
    (item,) = (await live.ask("GET", RUNS)).body["items"]
    run = await live.run(run_id)
    assert item["run_id"] == run_id
    assert (item["title"], item["step_count"], item["workflow_id"]) == ("Deploy", 2, workflow_id)
    for name in ("status", "paused_reason", "current_step_index", "error_code", "created_at", "updated_at"):
        assert item[name] == run[name]
    assert item["finished_at"]
    assert not {"steps_state", "workflow_snapshot"} & item.keys()


async def test_filters_are_of_every_kind_and_together(live: Stack) -> None:
    one = await named(live, "Deploy the Moon", step("a", approval_policy="manual", agent="agent-7"))
    two = await named(live, "Release notes")
    waiting, other = await begun(live, one), await begun(live, two)
    await live.until(waiting, "paused")
    await live.until(other, "paused")
    await live.decide(other, "cancel")
    created = {run_id: (await live.run(run_id))["created_at"] for run_id in (waiting, other)}
    assert await ids(live, "?status=paused") == [waiting]
    assert await ids(live, "?status=paused&status=canceled") == [other, waiting]
    assert await ids(live, "?paused_reason=awaiting_approval") == [waiting]
    assert await ids(live, f"?workflow_id={two}") == [other]
    assert await ids(live, "?agent_id=agent-7") == [waiting]
    assert await ids(live, "?q=THE%20moon") == [waiting]
    assert await ids(live, "?q=%25") == [], "a sign of a pattern is a sign"
    assert await ids(live, "?q=e") == [other, waiting]
    assert await ids(live, f"?created_after={created[other]}") == [other]
    assert await ids(live, f"?created_before={created[other]}") == [waiting]
    assert await ids(live, "?status=paused&q=notes") == []
    assert await ids(live, sub="bob") == []


async def test_copied_runs_are_listed_by_their_time_and_with_the_title_of_their_snapshot(live: Stack) -> None:
    """Runs of v0 have random ids, and whoever copies them fills no columns of ours."""
    workflow_id = await named(live, "Old")
    runs = [await begun(live, workflow_id) for _ in range(3)]
    strange = uuid4()
    await live.sql(
        "INSERT INTO workflow_runs (id, workflow_id, user_id, status, nonce, created_at)"
        " SELECT $1, workflow_id, user_id, 'completed', nonce, created_at + interval '1 us' FROM workflow_runs"
        " WHERE id = $2::text::uuid",
        strange,
        runs[1],
    )
    await live.sql(
        'INSERT INTO workflow_run_specs (run_id, snapshot) VALUES ($1, \'{"title":"Ä","steps":[]}\')', strange
    )
    assert await ids(live) == [runs[2], str(strange), runs[1], runs[0]]
    assert await ids(live, "?q=%C3%84") == [str(strange)]
    assert (await live.ask("GET", f"{RUNS}?status=completed")).body["items"][0]["title"] == "Ä"


BAD = {
    "a status of no kind": "status=gone",
    "a misspelt filter": "state=paused",
    "no page": "limit=0",
    "a page of too much": "limit=201",
    "a number of no digits": "limit=1_0",
    "a cursor of another kind": "cursor=abc",
    "half a uuid": "workflow_id=0199",
    "a moment without a zone": "created_after=2026-01-01T00:00:00",
    "a moment as a number": "created_after=1700000000",
    "two workflows": f"workflow_id={UUID(int=1)}&workflow_id={UUID(int=2)}",
    "NUL": "q=%00",
    "nothing to look for": "q=",
}


@pytest.mark.parametrize("name", BAD)
async def test_a_list_of_what_nobody_understands_is_refused(live: Stack, name: str) -> None:
    assert_problem(await live.ask("GET", f"{RUNS}?{BAD[name]}"), 422, "invalid_parameter")


async def test_any_cursor_of_the_right_form_is_a_place(live: Stack) -> None:
    run_id = await begun(live, await named(live, "Deploy"))
    assert await ids(live, "?cursor=" + "_" * 32) == []
    assert await ids(live, "?cursor=" + "A" * 32) == []
    assert await ids(live, "?cursor=f" + "_" * 31) == [run_id]
    assert await ids(live, "?cursor=g" + "A" * 31) == []


async def test_workflows_are_listed_without_the_archived_ones(live: Stack) -> None:
    flows = [await named(live, title) for title in ("One", "Two", "Three")]
    await live.ask("DELETE", f"{FLOWS}/{flows[1]}")
    await named(live, "Another's", sub="bob")
    page = (await live.ask("GET", f"{FLOWS}?limit=1")).body
    assert [item["title"] for item in page["items"]] == ["Three"]
    rest = (await live.ask("GET", f"{FLOWS}?cursor={page['next_cursor']}")).body
    assert [(item["title"], item["step_count"], item["version"]) for item in rest["items"]] == [("One", 1, 1)]
    everything = (await live.ask("GET", f"{FLOWS}?archived=true")).body["items"]
    assert [item["archived_at"] is None for item in everything] == [True, False, True]
    assert [item["title"] for item in (await live.ask("GET", f"{FLOWS}?q=tHr")).body["items"]] == ["Three"]


async def test_history_is_the_stream_page_by_page(live: Stack) -> None:
    run_id = await live.start(step("a", "streaming"), step("b"))
    await live.at_rest(run_id, "completed", "b")
    told = await live.log(run_id)
    seen: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = (await live.ask("GET", f"{RUNS}/{run_id}/history?after_seq={after}&limit=3")).body
        assert 1 <= len(page["items"]) <= 3
        seen += page["items"]
        after = page["next_after_seq"]
    assert seen == told
    end = await live.ask("GET", f"{RUNS}/{run_id}/history?after_seq={told[-1]['seq']}")
    assert end.body == {"items": [], "next_after_seq": None}
    assert_problem(await live.ask("GET", f"{RUNS}/{run_id}/history", sub="bob"), 404, "not_found")
