"""Bulk decisions: a filter, one action, a result for each run; nothing outside the filter moves."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.api.harness import AGENT, Answer, Stack, step
from tests.api.test_unknown import unknown
from tests.patience import eventually

NOBODY = "01990000-0000-7000-8000-000000000000"


async def bulk(stack: Stack, action: str, *, sub: str = "ann", **more: Any) -> Answer:
    wanted = {key: more.pop(key) for key in list(more) if key not in ("reason", "confirm", "limit", "dry_run")}
    return await stack.post("/v1/workflow-runs/bulk", {"action": action, "filter": wanted} | more, sub=sub)


def outcomes(answer: Answer) -> dict[str, str]:
    return {item["run_id"]: item["outcome"] for item in answer.body["items"]}


async def failed(stack: Stack, count: int, *, agent: str = "agent-1") -> list[str]:
    """So many runs paused as step_failed."""
    runs = [await stack.start(step("a", "failing", agent=agent)) for _ in range(count)]
    for run_id in runs:
        await stack.until(run_id, "paused")
    return runs


async def test_retry_by_filter_retries_what_failed_and_nothing_else(live: Stack) -> None:
    runs, waiting = await failed(live, 5), await live.start(step("a", approval_policy="manual"))
    await live.until(waiting, "paused")
    live.tools.healthy = True
    answer = await bulk(live, "retry", status=["paused"])
    assert (answer.status, answer.body["more"]) == (200, False)
    assert outcomes(answer) == dict.fromkeys(runs, "applied")
    for run_id in runs:
        await live.until(run_id, "completed")
    assert (await live.run(waiting))["status"] == "paused"


@pytest.mark.parametrize("action", ["resume", "retry"])
async def test_nothing_is_approved_in_bulk_even_when_named(live: Stack, action: str) -> None:
    waiting = await live.start(step("a", approval_policy="manual"))
    await live.until(waiting, "paused")
    answer = await bulk(live, action, run_ids=[waiting])
    (item,) = answer.body["items"]
    assert (item["outcome"], item["code"]) == ("refused", f"not_to_{action}")
    assert live.gateway.ledger == []


async def test_cancel_by_agent_and_each_named_run_gets_its_answer(live: Stack) -> None:
    here, there = await failed(live, 2), await failed(live, 1, agent="agent-9")
    assert outcomes(await bulk(live, "cancel", agent_id="agent-9")) == {there[0]: "applied"}
    answer = await bulk(live, "cancel", run_ids=[*here, there[0], NOBODY], reason="clean up")
    assert outcomes(answer) == {here[0]: "applied", here[1]: "applied", there[0]: "unchanged", NOBODY: "refused"}
    command = next(item["command"] for item in answer.body["items"] if item["run_id"] == here[0])
    assert (await live.ask("GET", command)).body["verdict"] == "applied"


async def test_the_runs_of_others_are_not_there(live: Stack) -> None:
    (run_id,) = await failed(live, 1)
    answer = await bulk(live, "cancel", sub="bob", run_ids=[run_id])
    assert [item["code"] for item in answer.body["items"]] == ["not_found"]
    assert (await bulk(live, "cancel", sub="bob", status=["paused"])).body["items"] == []
    assert (await live.run(run_id))["status"] == "paused"


async def test_a_dry_run_says_what_is_meant_and_does_nothing(live: Stack) -> None:
    runs = await failed(live, 3)
    answer = await bulk(live, "cancel", paused_reason=["step_failed"], dry_run=True, limit=2)
    assert (list(outcomes(answer).values()), answer.body["more"]) == (["undecided", "undecided"], True)
    assert {(await live.run(run_id))["status"] for run_id in runs} == {"paused"}
    kinds = await live.sql("SELECT kind FROM workflow_run_commands WHERE kind <> 'start'")
    assert kinds == []


async def test_an_unknown_outcome_is_retried_only_when_confirmed(live: Stack) -> None:
    run_id, _ = await unknown(live)
    (item,) = (await bulk(live, "retry", run_ids=[run_id])).body["items"]
    assert (item["outcome"], item["code"]) == ("refused", "confirm_required")
    (item,) = (await bulk(live, "retry", run_ids=[run_id], confirm="run_again")).body["items"]
    assert item["outcome"] == "applied"


@pytest.mark.parametrize(
    "body",
    [
        {"action": "cancel"},
        {"action": "cancel", "filter": {}},
        {"action": "approve", "filter": {"status": ["paused"]}},
        {"action": "cancel", "filter": {"state": ["paused"]}},
        {"action": "cancel", "filter": {"status": ["gone"]}},
        {"action": "cancel", "filter": {"run_ids": []}},
        {"action": "cancel", "filter": {"status": []}},
        {"action": "cancel", "filter": {"paused_reason": []}},
        {"action": "cancel", "filter": {"created_after": "0001-01-01T00:00:00+14:00"}},
        {"action": "cancel", "filter": {"created_before": "9999-12-31T23:59:59-14:00"}},
        {"action": "cancel", "filter": {"run_ids": ["x"]}},
        {"action": "cancel", "filter": {"created_after": "2026-01-01T00:00:00"}},
        {"action": "cancel", "filter": {"status": ["paused"]}, "limit": 0},
        {"action": "cancel", "filter": {"run_ids": [str(UUID(int=n)) for n in range(501)]}},
    ],
)
async def test_a_filter_that_is_not_clear_is_refused(live: Stack, body: Any) -> None:
    answer = await live.post("/v1/workflow-runs/bulk", body)
    assert (answer.status, answer.body["code"]) == (422, "invalid_body")


async def test_a_run_that_ends_before_its_cancel_is_not_said_to_be_canceled(
    live: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await live.start(step("a", "slow"))
    await eventually(lambda: live.tools.running, what="the tool running")
    runs = live.context.runs
    matching = runs.matching

    async def found_too_early(*about: Any, **more: Any) -> Any:
        found = await matching(*about, **more)
        live.tools.release.set()
        await live.until(run_id, "completed")
        return found

    monkeypatch.setattr(runs, "matching", found_too_early)
    (item,) = (await bulk(live, "cancel", agent_id=AGENT)).body["items"]
    assert (item["outcome"], item["message"]) == ("unchanged", "The run is completed already.")
    assert (await live.run(run_id))["status"] == "completed"
