"""A node that runs as a role which owns nothing: all that it does still works, and it cannot rewrite what it wrote."""

from __future__ import annotations

import psycopg

from daemon.store.privileges import grant_to
from tests.api.harness import Stack, stack, step

ROLE = "runwarden_nodes"


async def _everything(live: Stack) -> None:
    """Each kind of thing that a node writes: templates, runs with approvals, logs and failures, keys, bulk, tickets."""
    body = {"title": "One", "spec": {"steps": [step("a", "streaming"), step("b", approval_policy="manual")]}}
    made = await live.ask("POST", "/v1/workflows", json=body, headers={"Idempotency-Key": "once"})
    place = f"/v1/workflows/{made.body['workflow_id']}"
    assert (await live.ask("PUT", place, json=body | {"title": "Two"})).status == 200
    started = await live.post("/v1/workflow-runs", {"workflow_id": made.body["workflow_id"]})
    run_id = started.body["run_id"]
    await live.until(run_id, "paused")
    assert (await live.decide(run_id, "approve", {"step_id": "b"})).status == 200
    await live.until(run_id, "completed")
    broken = await live.start(step("a", "failing"))
    await live.until(broken, "paused")
    assert (await live.decide(broken, "resume")).status == 200
    bulk = {"action": "cancel", "filter": {"run_ids": [broken]}}
    assert (await live.post("/v1/workflow-runs/bulk", bulk)).body["items"][0]["outcome"] == "applied"
    assert (await live.ask("DELETE", place)).status == 200
    told = (await live.ask("GET", "/v1/audit?limit=200")).body["items"]
    assert {line["action"] for line in told} >= {"workflow.created", "run.start", "run.approve", "run.cancel"}


async def test_a_node_runs_as_a_role_that_owns_nothing(
    admin: psycopg.Connection, database: str, redis_url: str, redis_prefix: str
) -> None:
    admin.execute(f"CREATE ROLE {ROLE} LOGIN")
    try:
        grant_to(database, ROLE)
        url = database.replace("://postgres@", f"://{ROLE}@")
        async with stack(url, redis_url, redis_prefix) as live:
            await _everything(live)
            (who,) = await live.sql("SELECT current_user")
            assert who["current_user"] == ROLE
    finally:
        with psycopg.connect(database, autocommit=True) as owner:
            owner.execute(f"DROP OWNED BY {ROLE}")
        admin.execute(f"DROP ROLE {ROLE}")
