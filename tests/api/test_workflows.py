"""Workflows change by versions and are archived; runs keep what they were started with."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.answers import assert_problem
from tests.api.harness import Stack, step

pytestmark = pytest.mark.asyncio(loop_scope="module")
NOBODY = "01990000-0000-7000-8000-000000000000"


def body(title: str, *ids: str, **more: Any) -> dict[str, Any]:
    return {"title": title, "spec": {"steps": [step(one, approval_policy="manual") for one in ids]}} | more


async def put(stack: Stack, place: str, sent: Any, **headers: str) -> Any:
    return await stack.ask("PUT", place, json=sent, headers={k.replace("_", "-"): v for k, v in headers.items()})


async def test_put_makes_the_next_version_and_runs_keep_their_snapshot(shared: Stack) -> None:
    made = await shared.post("/v1/workflows", body("One", "a"))
    place = f"/v1/workflows/{made.body['workflow_id']}"
    assert (made.body["version"], made.headers["ETag"]) == (1, '"1"')
    run = await shared.post("/v1/workflow-runs", {"workflow_id": made.body["workflow_id"]})
    renewed = await put(shared, place, body("Two", "b", "c"))
    assert (renewed.status, renewed.body["version"], renewed.headers["ETag"]) == (200, 2, '"2"')
    assert (await shared.ask("GET", place)).body == renewed.body
    assert (await shared.run(run.body["run_id"]))["workflow_snapshot"] == made.body["spec"]
    later = await shared.post("/v1/workflow-runs", {"workflow_id": made.body["workflow_id"]})
    assert later.body["workflow_snapshot"]["title"] == "Two"


async def test_a_writer_who_knows_an_older_version_changes_nothing(shared: Stack) -> None:
    made = await shared.post("/v1/workflows", body("One", "a"))
    place = f"/v1/workflows/{made.body['workflow_id']}"
    assert (await put(shared, place, body("Two", "a"), If_Match='"1"')).status == 200
    assert_problem(await put(shared, place, body("Three", "a"), If_Match='"1"'), 412, "version_conflict")
    assert_problem(await put(shared, place, body("Three", "a", version=1)), 412, "version_conflict")
    assert (await shared.ask("GET", place)).body["title"] == "Two"
    assert (await put(shared, place, body("Three", "a", version=2))).body["version"] == 3
    assert (await put(shared, place, body("Four", "a"), If_Match="*")).body["version"] == 4
    for strange in ("4", "x", '"x"', 'W/"4"', '"999999999999"'):
        refused = await put(shared, place, body("Five", "a"), If_Match=strange)
        assert_problem(refused, 412, "version_conflict", "send the ETag as a GET tells it, now '\"4\"'")
    assert_problem(await put(shared, place, body("Five", "a", "a")), 422, "invalid_spec")


async def test_an_archived_workflow_is_read_and_starts_nothing(shared: Stack) -> None:
    made = await shared.post("/v1/workflows", body("One", "a"))
    workflow_id = made.body["workflow_id"]
    place = f"/v1/workflows/{workflow_id}"
    run_id = (await shared.post("/v1/workflow-runs", {"workflow_id": workflow_id})).body["run_id"]
    archived = await shared.ask("DELETE", place)
    assert archived.status == 200
    assert archived.body["archived_at"]
    assert (await shared.ask("DELETE", place)).body == archived.body
    assert (await shared.ask("GET", place)).body == archived.body
    for sent in ({"workflow_id": workflow_id}, {"workflow_id": workflow_id, "run_timeout_ms": 1000}):
        assert_problem(await shared.post("/v1/workflow-runs", sent), 409, "workflow_archived")
    assert_problem(await put(shared, place, body("Two", "a")), 409, "workflow_archived")
    await shared.until(run_id, "paused")
    assert (await shared.decide(run_id, "approve", {"step_id": "a"})).status == 200
    await shared.until(run_id, "completed")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_anothers_workflow_is_not_there(shared: Stack, method: str) -> None:
    workflow_id = await shared.workflow(step("a"), sub="bob")
    for place in (workflow_id, NOBODY, "seven"):
        sent = {"json": body("Mine", "a")} if method == "PUT" else {}
        assert_problem(await shared.ask(method, f"/v1/workflows/{place}", **sent), 404, "not_found")
