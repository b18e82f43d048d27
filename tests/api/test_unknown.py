"""Unknown outcomes as a client of the API lives them: settled by themselves, decided by a person, or repeated."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.dev.envelope import Json
from tests.api.answers import assert_problem
from tests.api.harness import AGENT, Stack, step
from tests.cluster.harness import runner_of
from tests.patience import eventually

ECHO = {"lines": ["a"], "sleep_ms": 600_000}
"""Arguments of an echo that outlives the test."""


def envelope(req_id: str, **payload: Any) -> Json:
    """A RESULT as an agent sends it."""
    return {"v": 1, "type": "RESULT", "agent_id": AGENT, "req_id": req_id, "ts": 1, "payload": payload}


def collateral(req_id: str) -> Json:
    """What an agent sends for an innocent call when its tunnel breaks: canceled, though nobody asked."""
    return envelope(req_id, ok=False, canceled=True, error={"code": "canceled", "message": "canceled"})


async def attempt(stack: Stack, run_id: str, index: int = 0, step_id: str = "a") -> dict[str, Any]:
    """The ``index``-th attempt of a step, once the agent has acknowledged it."""

    async def there() -> dict[str, Any] | None:
        attempts = (await stack.run(run_id))["steps_state"][step_id]["attempts"]
        found: dict[str, Any] | None = attempts[index] if len(attempts) > index else None
        return found if found is not None and found["state"] in ("sent", "acked") else None

    return await eventually(there, what=f"attempt {index} of {step_id} under way")


async def unknown(stack: Stack, *steps: dict[str, Any]) -> tuple[str, str]:
    """A run that stands still because nobody knows what became of its first call; its id and the call's req_id."""
    run_id = await stack.start(*(steps or (step("a", "slow"), step("b"))))
    req_id = (await attempt(stack, run_id))["req_id"]
    stack.gateway.publish(collateral(req_id))
    run = await stack.until(run_id, "paused")
    assert run["paused_reason"] == "outcome_unknown"
    return run_id, req_id


async def test_a_result_before_the_person_decides_settles_it(live: Stack) -> None:
    run_id, req_id = await unknown(live)
    live.tools.release.set()  # the tool had gone on all the while
    run = await live.until(run_id, "completed")
    settled = run["steps_state"]["a"]["attempts"][0]
    assert (settled["state"], settled["ok"], settled["error"]) == ("done", True, None)
    assert settled["result_json"]["content"][0]["text"] == "at last"
    (evidence,) = [event["payload"] for event in await live.log(run_id) if event["event_type"] == "tool.evidence"]
    assert (evidence["settles"], evidence["req_id"]) == ("done", req_id)
    assert [execution.tool_name for execution in live.gateway.ledger] == ["slow", "ok"]


async def test_skip_goes_on_without_the_step(live: Stack) -> None:
    run_id, _ = await unknown(live)
    answer = await live.decide(run_id, "skip", {"step_id": "a", "reason": "not worth it"})
    assert answer.status == 200
    run = await live.until(run_id, "completed")
    skipped = run["steps_state"]["a"]
    assert (skipped["status"], skipped["decided_by"], skipped["note"]) == ("skipped", "ann", "not worth it")
    assert [execution.tool_name for execution in live.gateway.ledger] == ["slow", "ok"]


async def test_mark_done_wants_a_note_and_keeps_it(live: Stack) -> None:
    run_id, _ = await unknown(live)
    for nothing in ({}, {"note": ""}, {"note": " "}, {"note": " \t\r\n\x1f\u00a0\u2003"}):
        refused = await live.decide(run_id, "mark-done", {"step_id": "a", **nothing})
        assert_problem(refused, 422, "invalid_body")
        assert [fault["path"] for fault in refused.body["errors"]] == ["/note"], nothing
        assert "what you saw" in refused.body["errors"][0]["message"] or not nothing
    answer = await live.decide(run_id, "mark-done", {"step_id": "a", "note": "the file is there"})
    assert answer.status == 200
    run = await live.until(run_id, "completed")
    marked = run["steps_state"]["a"]
    assert (marked["status"], marked["decided_by"], marked["note"]) == ("success", "ann", "the file is there")
    assert marked["attempts"][0]["state"] == "unknown"


async def test_resume_wants_to_be_confirmed_and_a_late_result_is_evidence_then(live: Stack) -> None:
    run_id, req_id = await unknown(live, step("a", "slow"))
    refused = await live.decide(run_id, "resume")
    assert (refused.status, refused.body["code"]) == (409, "confirm_required")
    assert (await live.decide(run_id, "resume", {"confirm": "run_again"})).status == 200
    again = (await attempt(live, run_id, 1))["req_id"]
    assert again != req_id
    live.tools.release.set()
    run = await live.until(run_id, "completed")
    assert [one["state"] for one in run["steps_state"]["a"]["attempts"]] == ["unknown", "done"]
    assert [execution.tool_name for execution in live.gateway.ledger] == ["slow", "slow"]


@pytest.mark.parametrize("declared", [True, None], ids=["declared", "by its annotations"])
async def test_a_harmless_tool_is_called_again_by_itself(live: Stack, declared: bool | None) -> None:
    """The echo says readOnlyHint; ``slow`` says nothing, so its step declares it."""
    first = step("a", "slow", idempotent=True) if declared else step("a", "bridge__echo", arguments=ECHO)
    run_id = await live.start(first, step("b"))
    req_id = (await attempt(live, run_id))["req_id"]
    hints = runner_of(live)._catalogue.hints
    await eventually(lambda: (AGENT, "bridge__echo") in hints, what="the tools' annotations")
    live.gateway.publish(collateral(req_id))
    again = (await attempt(live, run_id, 1))["req_id"]
    live.gateway.publish(envelope(again, ok=True, result_json={"content": [{"type": "text", "text": "twice"}]}))
    await live.until(run_id, "completed")
    events = await live.log(run_id)
    (repeating,) = [event["payload"] for event in events if event["event_type"] == "step.repeating"]
    assert repeating["because"] == ("declared" if declared else "read_only")
    assert "step.paused" not in [event["event_type"] for event in events]
    assert len(live.gateway.ledger) == 3


async def test_idempotent_false_outweighs_the_annotations(live: Stack) -> None:
    run_id = await live.start(step("a", "bridge__echo", arguments=ECHO, idempotent=False))
    req_id = (await attempt(live, run_id))["req_id"]
    await eventually(lambda: (AGENT, "bridge__echo") in runner_of(live)._catalogue.hints, what="annotations")
    live.gateway.publish(collateral(req_id))
    assert (await live.until(run_id, "paused"))["paused_reason"] == "outcome_unknown"


async def test_a_run_that_takes_longer_than_it_may_fails_and_its_call_is_stopped(live: Stack) -> None:
    workflow_id = await live.workflow(step("a", "slow"), step("b"))
    created = await live.post("/v1/workflow-runs", {"workflow_id": workflow_id, "run_timeout_ms": 5000})
    assert created.body["workflow_snapshot"]["run_timeout_ms"] == 5000
    await eventually(lambda: "slow" in live.tools.running, what="the tool running")
    run = await live.until(created.body["run_id"], "failed")
    assert (run["error_code"], run["steps_state"]["a"]["status"]) == ("run_timeout", "canceled")

    async def evidence() -> list[Any]:
        events = await live.log(created.body["run_id"])
        return [event["payload"]["cancel"] for event in events if event["event_type"] == "tool.result"]

    assert await eventually(evidence, what="what the agent answered") == ["stopped"]
    assert [interval.how for interval in live.tools.intervals] == ["canceled"]


async def test_a_run_deadline_passes_while_it_waits_for_a_person(live: Stack) -> None:
    workflow_id = await live.workflow(step("a", approval_policy="manual"))
    created = await live.post("/v1/workflow-runs", {"workflow_id": workflow_id, "run_timeout_ms": 700})
    run = await live.until(created.body["run_id"], "failed")
    assert (run["error_code"], run["steps_state"]["a"]["attempts"]) == ("run_timeout", [])
