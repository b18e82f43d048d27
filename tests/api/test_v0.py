"""Every route of the v0 table by its exact answers: status codes, fields, types, times. v1 only ever adds to them."""

from __future__ import annotations

import re
import time
from typing import Any
from uuid import UUID

import pytest

from tests.api.harness import AGENT, Stack, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

ISO_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
RUN_OF_V0 = {
    "run_id",
    "workflow_id",
    "status",
    "paused_reason",
    "current_step_index",
    "workflow_snapshot",
    "steps_state",
    "created_at",
    "updated_at",
}
ATTEMPT_OF_V0 = {
    "req_id",
    "agent_id",
    "tool_name",
    "start_ts",
    "end_ts",
    "ok",
    "exit_code",
    "canceled",
    "error",
    "result_json",
    "result_preview",
    "log_preview",
}
NOBODY = "01990000-0000-7000-8000-000000000000"


def assert_recent(epoch_s: Any) -> None:
    """Times inside attempts are whole epoch seconds of about now."""
    assert type(epoch_s) is int
    assert abs(epoch_s - time.time()) < 60


async def test_creating_a_workflow_answers_it_with_every_default_filled_in(shared: Stack) -> None:
    sent = {
        "title": "Deploy",
        "description": "to the moon",
        "spec": {
            "title": "loses",
            "description": "loses too",
            "variables": {"region": "eu"},
            "steps": [{"id": "a", "name": "A", "tool_config": {"agent_id": AGENT, "tool_name": "ok"}}],
        },
    }
    made = await shared.post("/v1/workflows", sent)
    assert made.status == 200
    assert made.headers["Content-Type"] == "application/json"
    assert set(made.body) >= {"workflow_id", "title", "description", "spec", "created_at", "updated_at"}
    assert UUID(made.body["workflow_id"]).version == 7
    assert (made.body["title"], made.body["description"]) == ("Deploy", "to the moon")
    assert made.body["spec"] == {
        "title": "Deploy",
        "description": "to the moon",
        "variables": {"region": "eu"},
        "steps": [
            {
                "id": "a",
                "name": "A",
                "type": "tool_call",
                "tool_config": {
                    "agent_id": AGENT,
                    "tool_name": "ok",
                    "arguments": {},
                    "timeout_ms": 60000,
                    "stream": True,
                },
                "approval_policy": "auto",
                "on_error": "stop",
            }
        ],
    }
    assert ISO_UTC.fullmatch(made.body["created_at"])
    assert ISO_UTC.fullmatch(made.body["updated_at"])


async def test_without_a_description_of_its_own_the_spec_keeps_its_own(shared: Stack) -> None:
    spec = {"title": "x", "description": "of the spec", "steps": [step("a")]}
    made = await shared.post("/v1/workflows", {"title": "T", "spec": spec})
    assert (made.body["description"], made.body["spec"]["description"]) == ("of the spec", "of the spec")


async def test_a_spec_needs_no_title_because_the_body_has_one(shared: Stack) -> None:
    made = await shared.post("/v1/workflows", {"title": "T", "spec": {"steps": [step("a")]}})
    assert (made.status, made.body["spec"]["title"]) == (200, "T")
    assert made.body["description"] is None


async def test_creating_a_run_answers_the_run_as_stored_without_waiting_for_it(shared: Stack) -> None:
    workflow_id = await shared.workflow(step("a"), step("b"))
    made = await shared.post("/v1/workflow-runs", {"workflow_id": workflow_id})
    assert made.status == 200
    run = made.body
    assert set(run) >= RUN_OF_V0
    assert UUID(run["run_id"]).version == 7
    assert (run["workflow_id"], run["status"], run["paused_reason"]) == (workflow_id, "running", None)
    assert [one["id"] for one in run["workflow_snapshot"]["steps"]] == ["a", "b"]
    assert list(run["steps_state"]) == ["a", "b"]
    await shared.until(run["run_id"], "completed")


async def test_a_finished_run_has_v0s_shape_key_by_key(shared: Stack) -> None:
    run_id = await shared.start(step("a", arguments={"n": 1}), step("b", "streaming"))
    run = await shared.until(run_id, "completed")
    assert set(run) >= RUN_OF_V0
    assert (run["run_id"], run["paused_reason"], run["current_step_index"]) == (run_id, None, 2)
    assert run["workflow_snapshot"]["title"] == "A workflow"
    assert run["workflow_snapshot"]["steps"][0]["tool_config"]["arguments"] == {"n": 1}
    assert ISO_UTC.fullmatch(run["created_at"])
    assert ISO_UTC.fullmatch(run["updated_at"])
    assert run["updated_at"] > run["created_at"]
    assert set(run["steps_state"]) == {"a", "b"}
    for state in run["steps_state"].values():
        assert state["status"] == "success"
        assert "approved" not in state
        assert len(state["attempts"]) == 1
    attempt = run["steps_state"]["a"]["attempts"][0]
    assert set(attempt) >= ATTEMPT_OF_V0
    assert re.fullmatch(r"[A-Za-z0-9_-]{44}", attempt["req_id"])
    assert (attempt["agent_id"], attempt["tool_name"]) == (AGENT, "ok")
    assert (attempt["ok"], attempt["canceled"], attempt["error"], attempt["exit_code"]) == (True, False, None, None)
    assert_recent(attempt["start_ts"])
    assert_recent(attempt["end_ts"])
    assert attempt["result_json"] == {"content": [{"text": "ok", "type": "text"}]}
    assert attempt["result_preview"] == '{"content":[{"text":"ok","type":"text"}]}'


async def test_a_failed_attempt_has_v0s_shape_and_its_error(shared: Stack) -> None:
    run_id = await shared.start(step("a", "failing"))
    run = await shared.until(run_id, "paused")
    assert run["steps_state"]["a"]["status"] == "failed"
    attempt = run["steps_state"]["a"]["attempts"][0]
    assert attempt["ok"] is False
    assert attempt["error"] == {"code": "tool_call_failed", "message": "it broke"}
    assert (attempt["result_json"], attempt["result_preview"]) == (None, None)
    assert_recent(attempt["end_ts"])


async def test_a_step_that_waits_is_pending_and_an_approved_one_says_when(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"))
    waiting = await shared.until(run_id, "paused")
    assert waiting["paused_reason"] == "awaiting_approval"
    asked = waiting["steps_state"]["a"].pop("approval")
    assert (asked["state"], asked["revision"], asked["votes"]) == ("open", 1, [])
    assert waiting["steps_state"]["a"] == {"status": "pending", "attempts": []}
    answered = await shared.decide(run_id, "approve", {"step_id": "a"})
    assert answered.status == 200
    assert set(answered.body) >= RUN_OF_V0
    state = (await shared.until(run_id, "completed"))["steps_state"]["a"]
    assert state["approved"] is True
    assert_recent(state["approved_at"])


async def test_previews_are_bounded_and_the_result_is_whole(shared: Stack) -> None:
    lines = step("b", "streaming", arguments={"lines": 300, "width": 100})
    run_id = await shared.start(step("a", "big", arguments={"characters": 20_000}), lines)
    async with shared.watch(run_id) as watch:
        events = await watch.rest()
    results = [event["payload"] for event in events if event["event_type"] == "tool.result"]
    assert all(len(result["result_preview"]) <= 800 for result in results)
    run = await shared.run(run_id)
    big, streaming = (run["steps_state"][name]["attempts"][0] for name in ("a", "b"))
    assert big["result_json"]["content"][0]["text"] == "x" * 20_000
    assert len(big["result_preview"]) == 800
    assert len(streaming["log_preview"]) == 8000
    assert streaming["log_preview"].endswith("000299 ".ljust(100, ".") + "\n")


async def test_the_snapshot_is_the_workflow_of_the_moment_and_whatever_was_sent_stays_as_it_was(shared: Stack) -> None:
    text = 'żółć 日本語 \U0001f600 \u2028 </script> "quoted" back\\slash'
    arguments = {"text": text, "nested": {"list": [1, 2.5, True, None, "x"]}, "key with / and ~": 0, "": "empty key"}
    run_id = await shared.start(step("a", arguments=arguments))
    run = await shared.until(run_id, "completed")
    assert run["workflow_snapshot"]["steps"][0]["tool_config"]["arguments"] == arguments
    assert shared.gateway.ledger[-1].arguments == arguments


async def test_cancel_answers_the_run_and_its_reason_reaches_the_log(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"))
    await shared.until(run_id, "paused")
    answered = await shared.decide(run_id, "cancel", {"reason": "not today", "unknown": "ignored"})
    assert (answered.status, answered.body["status"]) == (200, "canceled")
    assert answered.body["paused_reason"] == "user_cancel"
    canceled = [event for event in await shared.log(run_id) if event["event_type"] == "run.canceled"]
    assert [event["payload"]["reason"] for event in canceled] == ["not today"]


async def test_resume_and_cancel_need_no_body(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"), step("b", approval_policy="manual"))
    await shared.until(run_id, "paused")
    assert (await shared.decide(run_id, "resume")).status == 200
    assert (await shared.decide(run_id, "cancel")).status == 200


async def test_unknown_fields_at_the_top_level_are_ignored_on_every_v0_route(shared: Stack) -> None:
    extra = {"unknown": 1, "more": {"of": ["it"]}}
    made = await shared.post("/v1/workflows", {"title": "T", "spec": {"steps": [step("a", "failing")]}} | extra)
    assert made.status == 200
    run = await shared.post("/v1/workflow-runs", {"workflow_id": made.body["workflow_id"]} | extra)
    assert run.status == 200
    run_id = run.body["run_id"]
    await shared.until(run_id, "paused")
    assert (await shared.decide(run_id, "resume", extra)).status == 200
    assert (await shared.decide(run_id, "cancel", extra)).status == 200


async def test_a_decided_command_can_be_read_by_its_url(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"))
    await shared.until(run_id, "paused")
    await shared.decide(run_id, "approve", {"step_id": "a"})
    rows = await shared.sql("SELECT id FROM workflow_run_commands WHERE run_id = $1 AND kind = 'approve'", UUID(run_id))
    path = f"/v1/workflow-runs/{run_id}/commands/{rows[0]['id']}"
    found = await shared.ask("GET", path)
    assert found.status == 200
    assert {name: found.body[name] for name in ("run_id", "kind", "verdict", "code", "message")} == {
        "run_id": run_id,
        "kind": "approve",
        "verdict": "applied",
        "code": None,
        "message": None,
    }
    assert found.body["applied_seq"] >= 2
    assert (await shared.ask("GET", path.replace(run_id, NOBODY))).status == 404


async def test_the_body_is_read_as_json_whatever_its_content_type_says(shared: Stack) -> None:
    body = '{"title": "T", "spec": {"steps": [{"id": "a", "name": "A", "tool_config":'
    body += ' {"agent_id": "agent-1", "tool_name": "ok"}}]}}'
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1", "x"):
        headers = {"Content-Type": content_type}
        made = await shared.ask("POST", "/v1/workflows", data=body.encode(), headers=headers)
        assert made.status == 200, content_type


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_the_operators_routes_need_no_token(shared: Stack, path: str) -> None:
    async with shared.http.get(shared.base + path) as answer:
        assert answer.status == 200


async def test_health_and_readiness_say_how_each_part_is(shared: Stack) -> None:
    alive = await shared.ask("GET", "/healthz")
    assert (alive.status, alive.body) == (200, {"status": "ok"})
    ready = await shared.ask("GET", "/readyz")
    assert ready.status == 200
    assert ready.body["status"] == "ready"
    assert {name: ready.body["checks"][name] for name in ("postgres", "redis", "gateway")} == {
        "postgres": "ok",
        "redis": "ok",
        "gateway": "ok",
    }
