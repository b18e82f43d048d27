"""``Idempotency-Key``: a request sent again, or twice at once, has one effect and one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.api.answers import assert_problem
from tests.api.harness import Answer, Stack, stack, step

RUNS = "/v1/workflow-runs"
FLOW = {"title": "T", "spec": {"steps": [step("a", approval_policy="manual")]}}


async def post(stack: Stack, path: str, body: Any, key: str, *, sub: str = "ann") -> Answer:
    return await stack.ask("POST", path, json=body, sub=sub, headers={"Idempotency-Key": key})


async def count(stack: Stack, table: str) -> int:
    (row,) = await stack.sql(f"SELECT count(*) AS rows FROM {table}")
    rows: int = row["rows"]
    return rows


async def test_ten_requests_at_once_make_one_workflow_and_one_run(live: Stack) -> None:
    made = await asyncio.gather(*(post(live, "/v1/workflows", FLOW, "k") for _ in range(10)))
    assert {answer.status for answer in made} == {200}
    (workflow_id,) = {answer.body["workflow_id"] for answer in made}
    begun = await asyncio.gather(*(post(live, RUNS, {"workflow_id": workflow_id}, "k") for _ in range(10)))
    assert {answer.status for answer in begun} == {200}
    assert len({answer.body["run_id"] for answer in begun}) == 1
    assert (await count(live, "workflows"), await count(live, "workflow_runs")) == (1, 1)


async def test_a_key_is_the_users_and_the_routes(live: Stack) -> None:
    mine = await post(live, "/v1/workflows", FLOW, "k")
    hers = await post(live, "/v1/workflows", FLOW, "k", sub="bob")
    assert mine.body["workflow_id"] != hers.body["workflow_id"]
    assert (await post(live, RUNS, {"workflow_id": mine.body["workflow_id"]}, "k")).status == 200


async def test_the_same_key_for_something_else_is_refused(live: Stack) -> None:
    made = await post(live, "/v1/workflows", FLOW, "k")
    assert_problem(await post(live, "/v1/workflows", FLOW | {"title": "U"}, "k"), 422, "idempotency_key_reused")
    same = {"spec": FLOW["spec"], "title": "T"}
    assert (await post(live, "/v1/workflows", same, "k")).body == made.body, "the order of fields says nothing"
    one, other = [await live.start(step("a", approval_policy="manual")) for _ in range(2)]
    await live.until(other, "paused")
    assert (await post(live, f"{RUNS}/{one}/cancel", {}, "c")).status == 200
    assert_problem(await post(live, f"{RUNS}/{other}/cancel", {}, "c"), 422, "idempotency_key_reused")
    assert (await live.run(other))["status"] == "paused"


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é"])
async def test_a_key_that_is_none_is_refused(live: Stack, key: str) -> None:
    assert_problem(await post(live, "/v1/workflows", FLOW, key), 422, "invalid_parameter")
    assert await count(live, "workflows") == 0


async def test_two_keys_of_one_request_are_refused(live: Stack) -> None:
    """Whoever repeats it might send one of them."""
    two = [("Authorization", f"Bearer {live.token()}"), ("Idempotency-Key", "k"), ("Idempotency-Key", "l")]
    async with live.http.post(f"{live.base}/v1/workflows", json=FLOW, headers=two) as response:
        answered = Answer(response.status, response.headers, await response.json(content_type=None))
    assert_problem(answered, 422, "invalid_parameter", "Idempotency-Key: stands there more than once")
    assert await count(live, "workflows") == 0


async def test_an_approval_sent_again_has_the_same_verdict_and_one_command(live: Stack) -> None:
    run_id = await live.start(step("a", approval_policy="manual"), step("b", approval_policy="manual"))
    await live.until(run_id, "paused")
    said = await asyncio.gather(*(post(live, f"{RUNS}/{run_id}/approve", {"step_id": "a"}, "k") for _ in range(5)))
    assert {answer.status for answer in said} == {200}
    assert (await post(live, f"{RUNS}/{run_id}/approve", {"step_id": "a"}, "k")).status == 200
    rows = await live.sql("SELECT kind FROM workflow_run_commands WHERE kind = 'approve'")
    assert len(rows) == 1
    wrong = await post(live, f"{RUNS}/{run_id}/approve", {"step_id": "b"}, "k")
    assert_problem(wrong, 422, "idempotency_key_reused")


async def test_all_who_say_the_same_at_once_hear_its_verdict_as_it_falls(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    """Not only the last of them: the others would wait for as long as a command may stay undecided."""
    async with stack(database, redis_url, redis_prefix, verdict_wait_s=60) as live:
        runs = [await live.start(step("a", approval_policy="manual")) for _ in range(2)]
        for run_id in runs:
            await live.until(run_id, "paused")
        one, other = runs
        bulk = {"action": "cancel", "filter": {"run_ids": [other]}}
        async with asyncio.timeout(30):
            said = await asyncio.gather(
                *(post(live, f"{RUNS}/{one}/approve", {"step_id": "a"}, "k") for _ in range(4)),
                *(post(live, f"{RUNS}/bulk", bulk, "k") for _ in range(4)),
            )
        assert {answer.status for answer in said} == {200}
        assert {answer.body["items"][0]["outcome"] for answer in said[4:]} == {"applied"}


async def test_a_refused_decision_sent_again_is_refused_again(live: Stack) -> None:
    run_id = await live.start(step("a", approval_policy="manual"))
    await live.until(run_id, "paused")
    first = await post(live, f"{RUNS}/{run_id}/approve", {"step_id": "z"}, "k")
    again = await post(live, f"{RUNS}/{run_id}/approve", {"step_id": "z"}, "k")
    assert_problem(first, 409, "wrong_step")
    assert again.body == first.body
    assert len(await live.sql("SELECT 1 FROM workflow_run_commands WHERE kind = 'approve'")) == 1


async def test_what_had_no_effect_keeps_no_key(live: Stack) -> None:
    nothing = {"workflow_id": "01990000-0000-7000-8000-000000000000"}
    assert_problem(await post(live, RUNS, nothing, "k"), 404, "not_found")
    workflow_id = await live.workflow(step("a", "slow"))
    run_id = (await post(live, RUNS, {"workflow_id": workflow_id}, "k")).body["run_id"]
    assert_problem(await post(live, f"{RUNS}/{run_id}/resume", {}, "k"), 409, "not_paused")
    rows = await live.sql("SELECT route FROM idempotency_keys")
    assert [row["route"] for row in rows] == ["POST /v1/workflow-runs"]


async def test_a_bulk_decision_sent_again_answers_the_same_items(live: Stack) -> None:
    runs = {await live.start(step("a", approval_policy="manual")) for _ in range(3)}
    for run_id in runs:
        await live.until(run_id, "paused")
    body = {"action": "cancel", "filter": {"status": ["paused"]}}
    first = await post(live, f"{RUNS}/bulk", body, "k")
    late = await live.start(step("a", approval_policy="manual"))
    await live.until(late, "paused")
    again = await post(live, f"{RUNS}/bulk", body, "k")
    assert {item["run_id"]: item["outcome"] for item in first.body["items"]} == dict.fromkeys(runs, "applied")
    assert {item["run_id"]: item["outcome"] for item in again.body["items"]} == dict.fromkeys(runs, "applied")
    assert (await live.run(late))["status"] == "paused"


async def test_a_key_is_forgotten_after_a_day_and_old_ones_are_thrown_away(live: Stack) -> None:
    first = await post(live, "/v1/workflows", FLOW, "k")
    await post(live, "/v1/workflows", FLOW, "other")
    await live.sql("UPDATE idempotency_keys SET created_at = created_at - interval '25 hours'")
    again = await post(live, "/v1/workflows", FLOW | {"title": "U"}, "k")
    assert (again.status, again.body["workflow_id"] != first.body["workflow_id"]) == (200, True)
    assert [row["key"] for row in await live.sql("SELECT key FROM idempotency_keys")] == ["k"]
