"""Each sentence of the engine's semantics by its name, as a client of the API and the tools themselves see it."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any
from uuid import UUID

import pytest

from tests.api.harness import AGENT, Stack, step
from tests.patience import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def forgetful(shared: Stack) -> None:
    """Every test begins with an empty ledger and tools as at first."""
    shared.tools.intervals.clear()
    shared.gateway.ledger.clear()
    shared.gateway.published.clear()
    shared.tools.healthy = False
    shared.tools.release.clear()


def ran(stack: Stack) -> list[str]:
    """The tools that really ran, in order."""
    return [execution.tool_name for execution in stack.gateway.ledger]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["event_type"] for event in events]


async def test_steps_are_strictly_serial(shared: Stack) -> None:
    paced = {"lines": 3, "pace_ms": 5}
    run_id = await shared.start(*(step(f"s{n}", "streaming", arguments=paced) for n in range(6)))
    await shared.until(run_id, "completed")
    assert len(shared.tools.intervals) == 6
    for one, next_one in itertools.pairwise(sorted(shared.tools.intervals, key=lambda interval: interval.began)):
        assert one.ended <= next_one.began


async def test_two_runs_do_run_at_the_same_time(shared: Stack) -> None:
    first, second = await shared.start(step("a", "slow")), await shared.start(step("a", "slow"))
    await eventually(lambda: shared.tools.running.count("slow") == 2, what="both tools running")
    shared.tools.release.set()
    await shared.until(first, "completed")
    await shared.until(second, "completed")


async def test_a_manual_step_pauses_with_awaiting_approval_before_anything_is_called(shared: Stack) -> None:
    run_id = await shared.start(step("a"), step("b", approval_policy="manual"))
    run = await shared.until(run_id, "paused")
    assert (run["paused_reason"], run["current_step_index"]) == ("awaiting_approval", 1)
    assert ran(shared) == ["ok"]
    assert "step.paused" in types(await shared.log(run_id))
    await shared.decide(run_id, "approve", {"step_id": "b"})
    await shared.until(run_id, "completed")
    assert ran(shared) == ["ok", "ok"]


async def test_resume_of_a_run_that_awaits_approval_approves_its_step_and_goes_on(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"))
    await shared.until(run_id, "paused")
    assert (await shared.decide(run_id, "resume")).status == 200
    run = await shared.until(run_id, "completed")
    assert run["steps_state"]["a"]["approved"] is True


async def test_approve_names_the_step_that_waits_or_is_refused(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"), step("b", approval_policy="manual"))
    await shared.until(run_id, "paused")
    wrong = await shared.decide(run_id, "approve", {"step_id": "b"})
    assert (wrong.status, wrong.body["code"]) == (409, "wrong_step")
    assert (await shared.run(run_id))["status"] == "paused"
    await shared.decide(run_id, "cancel")


async def test_reject_fails_the_run_and_calls_nothing(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"), step("b"))
    await shared.until(run_id, "paused")
    answered = await shared.decide(run_id, "reject", {"step_id": "a", "reason": "too risky"})
    assert (answered.status, answered.body["status"]) == (200, "failed")
    assert answered.body["steps_state"]["a"]["status"] == "rejected"
    assert ran(shared) == []
    events = await shared.log(run_id)
    rejected = next(event["payload"] for event in events if event["event_type"] == "step.rejected")
    assert rejected["reason"] == "too risky"
    failed = next(event["payload"] for event in events if event["event_type"] == "run.failed")
    assert failed["error_code"] == "approval_rejected"


async def test_reject_where_on_error_is_continue_goes_on_with_the_next_step(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual", on_error="continue"), step("b"))
    await shared.until(run_id, "paused")
    assert (await shared.decide(run_id, "reject", {"step_id": "a"})).status == 200
    run = await shared.until(run_id, "completed")
    assert (run["steps_state"]["a"]["status"], run["steps_state"]["b"]["status"]) == ("rejected", "success")


async def test_a_failed_step_is_a_red_pause_and_resume_retries_it_with_the_next_attempt_index(shared: Stack) -> None:
    run_id = await shared.start(step("a", "failing"), step("b"))
    run = await shared.until(run_id, "paused")
    assert (run["paused_reason"], run["current_step_index"]) == ("step_failed", 0)
    assert (await shared.decide(run_id, "resume")).status == 200
    await eventually(lambda: len(shared.tools.intervals) == 2, what="the second attempt")
    await shared.until(run_id, "paused")
    shared.tools.healthy = True
    assert (await shared.decide(run_id, "resume")).status == 200
    run = await shared.until(run_id, "completed")
    attempts = run["steps_state"]["a"]["attempts"]
    assert [attempt["ok"] for attempt in attempts] == [False, False, True]
    assert len({attempt["req_id"] for attempt in attempts}) == 3
    events = [event["payload"] for event in await shared.log(run_id) if event["payload"].get("step_id") == "a"]
    running = [event for event in events if event["type"] == "step.progress" and event["status"] == "running"]
    assert [event["attempt_index"] for event in running] == [0, 1, 2]


async def test_on_error_continue_goes_on_and_emits_no_step_paused(shared: Stack) -> None:
    run_id = await shared.start(step("a", "failing", on_error="continue"), step("b"))
    async with shared.watch(run_id) as watch:
        told = types(await watch.rest())
    assert "step.paused" not in told
    assert "run.completed" in told
    run = await shared.run(run_id)
    assert [run["steps_state"][name]["status"] for name in ("a", "b")] == ["failed", "success"]


@pytest.mark.parametrize("verb", ["resume", "approve", "reject"])
async def test_a_decision_on_a_run_that_is_not_paused_is_409(shared: Stack, verb: str) -> None:
    run_id = await shared.start(step("a", "slow"))
    await eventually(lambda: "slow" in shared.tools.running, what="the tool running")
    for _ in range(2):
        refused = await shared.decide(run_id, verb, {"step_id": "a"})
        assert (refused.status, refused.body["code"]) == (409, "not_paused")
        shared.tools.release.set()
        await shared.until(run_id, "completed")


@pytest.mark.parametrize("verb", ["approve", "reject"])
async def test_a_failed_step_cannot_be_approved_or_rejected(shared: Stack, verb: str) -> None:
    run_id = await shared.start(step("a", "failing"))
    await shared.until(run_id, "paused")
    refused = await shared.decide(run_id, verb, {"step_id": "a"})
    assert (refused.status, refused.body["code"]) == (409, "not_awaiting_approval")
    await shared.decide(run_id, "cancel")


@pytest.mark.parametrize("reason", ["step_failed", "awaiting_approval"])
async def test_of_two_concurrent_resumes_exactly_one_wins_and_the_tool_runs_once(shared: Stack, reason: str) -> None:
    first = step("a", "failing") if reason == "step_failed" else step("a", "ok", approval_policy="manual")
    for _ in range(5):
        shared.tools.healthy = False
        run_id = await shared.start(first, step("gate", approval_policy="manual"))
        assert (await shared.until(run_id, "paused"))["paused_reason"] == reason
        shared.tools.healthy = True
        shared.gateway.ledger.clear()
        answers = await asyncio.gather(*(shared.decide(run_id, "resume") for _ in range(2)))
        assert sorted(answer.status for answer in answers) == [200, 409]
        refused = next(answer.body["code"] for answer in answers if answer.status == 409)
        assert refused in ("not_paused", "pause_changed")
        run = await shared.until(run_id, "paused")
        assert (run["paused_reason"], run["current_step_index"]) == ("awaiting_approval", 1)
        assert len(ran(shared)) == 1
        await shared.decide(run_id, "cancel")


async def test_of_many_people_pressing_everything_at_once_one_is_heard(shared: Stack) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"), step("b", approval_policy="manual"))
    await shared.until(run_id, "paused")
    body = {"step_id": "a"}
    pressed = [shared.decide(run_id, verb, body) for verb in ("approve", "reject", "resume") for _ in range(4)]
    statuses = [answer.status for answer in await asyncio.gather(*pressed)]
    assert sorted(statuses) == [200] + [409] * 11
    run = await shared.until(run_id, "paused", "failed")  # at rest: what it calls is no later test's
    assert len(ran(shared)) <= 1
    assert run["steps_state"]["b"]["attempts"] == []
    await shared.decide(run_id, "cancel")


async def test_cancel_of_a_paused_run_is_immediate(shared: Stack) -> None:
    run_id = await shared.start(step("a", "failing"))
    await shared.until(run_id, "paused")
    answered = await shared.decide(run_id, "cancel")
    assert (answered.status, answered.body["status"]) == (200, "canceled")
    assert shared.gateway.of("CANCEL_ACK") == []


async def test_cancel_of_a_running_run_is_canceled_at_once_and_sends_cancel(shared: Stack) -> None:
    run_id = await shared.start(step("a", "slow"), step("b"))
    await eventually(lambda: "slow" in shared.tools.running, what="the tool running")
    async with shared.watch(run_id) as watch:
        answered = await shared.decide(run_id, "cancel")
        assert (answered.status, answered.body["status"]) == (200, "canceled")
        result = await watch.until("tool.result")
    assert result["payload"]["state"] == "canceled"
    assert result["payload"]["canceled"] is True
    req_id = result["payload"]["req_id"]
    acks = [(ack["req_id"], ack["payload"]["will_cancel"]) for ack in shared.gateway.of("CANCEL_ACK")]
    assert (req_id, True) in acks
    assert [interval.how for interval in shared.tools.intervals] == ["canceled"]
    assert ran(shared) == ["slow"]
    state = (await shared.run(run_id))["steps_state"]
    assert (state["a"]["status"], state["a"]["attempts"][0]["canceled"]) == ("canceled", True)
    assert state["b"] == {"status": "pending", "attempts": []}


async def test_cancel_of_a_finished_run_answers_it_unchanged(shared: Stack) -> None:
    run_id = await shared.start(step("a"))
    before = await shared.at_rest(run_id, "completed", "a")
    answered = await shared.decide(run_id, "cancel", {"reason": "too late"})
    assert (answered.status, answered.body) == (200, before)
    assert await shared.run(run_id) == before


@pytest.mark.parametrize(("ending", "verb"), [("failed", "reject"), ("canceled", "cancel")])
async def test_terminal_states_never_change(shared: Stack, ending: str, verb: str) -> None:
    run_id = await shared.start(step("a", approval_policy="manual"))
    await shared.until(run_id, "paused")
    assert (await shared.decide(run_id, verb, {"step_id": "a"})).body["status"] == ending
    before = await shared.run(run_id)
    for late in ("resume", "approve", "reject"):
        assert (await shared.decide(run_id, late, {"step_id": "a"})).status == 409
    assert (await shared.decide(run_id, "cancel")).status == 200
    assert await shared.run(run_id) == before


async def test_ok_with_is_error_is_a_failure(shared: Stack) -> None:
    run_id = await shared.start(step("a", "is_error"))
    run = await shared.until(run_id, "paused")
    assert run["paused_reason"] == "step_failed"
    attempt = run["steps_state"]["a"]["attempts"][0]
    assert (attempt["ok"], attempt["error"]) == (False, {"code": "tool_error", "message": "the disk is full"})
    assert attempt["result_json"]["isError"] is True


async def test_a_tool_timeout_ends_in_cancel_and_a_result_of_state_timeout(shared: Stack) -> None:
    run_id = await shared.start(step("a", "slow", timeout_ms=1_500))
    async with shared.watch(run_id) as watch:
        result = (await watch.until("tool.result"))["payload"]
        await watch.until("step.paused")
    assert (result["state"], result["ok"], result["canceled"]) == ("timeout", False, False)
    assert result["error"]["code"] == "timeout"
    assert result["duration_ms"] >= 1_500
    assert [ack["payload"] for ack in shared.gateway.of("CANCEL_ACK")] == [{"will_cancel": True}]
    assert [interval.how for interval in shared.tools.intervals] == ["canceled"]
    run = await shared.run(run_id)
    assert (run["status"], run["paused_reason"]) == ("paused", "step_failed")


async def test_an_agent_that_is_not_there_is_a_red_pause_that_says_so(shared: Stack) -> None:
    run_id = await shared.start(step("a", agent="nobody"))
    run = await shared.until(run_id, "paused")
    assert run["paused_reason"] == "step_failed"
    assert run["steps_state"]["a"]["attempts"][0]["error"]["code"] == "agent_offline"


async def test_log_chunks_are_aggregated(shared: Stack) -> None:
    """Four hundred lines written in one go are few events, none over 2 KiB, and nothing of them is lost."""
    run_id = await shared.start(step("a", "streaming", arguments={"lines": 400, "width": 59}))
    async with shared.watch(run_id) as watch:
        events = await watch.rest()
    logs = [event["payload"] for event in events if event["event_type"] == "tool.log"]
    assert all(len(log["data"].encode()) <= 2048 for log in logs)
    text = "".join(log["data"] for log in logs if log["channel"] == "stdout")
    assert text == "".join(f"{number:06d} ".ljust(59, ".") + "\n" for number in range(400))
    assert len(logs) < 100
    for log in logs:
        assert {"req_id", "agent_id", "tool_name", "attempt_index", "dropped_bytes", "dropped_lines"} <= log.keys()


async def test_a_result_before_its_chunks_and_an_ack_before_the_202_are_normal(shared: Stack) -> None:
    """As the Gateway really does it: ACK, RESULT and only then the CHUNKs, all of it before its 202 is written."""

    def hasty(invoke: dict[str, Any]) -> None:
        for kind, payload in (
            ("INVOKE_ACK", {"accepted": True}),
            ("RESULT", {"ok": True, "result_json": "quick"}),
            ("CHUNK", {"channel": "stderr", "data": "too late for its result\n"}),
        ):
            agent, req_id = invoke["agent_id"], invoke["req_id"]
            shared.gateway.publish({"v": 1, "type": kind, "agent_id": agent, "req_id": req_id, "payload": payload})

    tunnel = shared.gateway._tunnels[AGENT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tunnel, "invoke", hasty)
        run_id = await shared.start(step("a"))
        async with shared.watch(run_id) as watch:
            await watch.until("tool.log")
            events = await watch.rest()
    assert events[-1]["event_type"] in ("run.completed", "tool.log")
    run = await shared.run(run_id)
    assert run["status"] == "completed"
    attempt = run["steps_state"]["a"]["attempts"][0]
    assert (attempt["ok"], attempt["result_json"]) == (True, "quick")
    assert attempt["log_preview"] == "too late for its result\n"


async def test_a_second_result_changes_nothing(shared: Stack) -> None:
    run_id = await shared.start(step("a"), step("b", approval_policy="manual"))
    before = await shared.at_rest(run_id, "paused", "a")
    again = next(iter(shared.gateway.of("RESULT")))
    shared.gateway.publish(again | {"payload": {"ok": False, "error": {"code": "x", "message": "forged"}}})
    shared.gateway.publish(again)
    await shared.decide(run_id, "approve", {"step_id": "b"})
    after = await shared.until(run_id, "completed")
    assert after["steps_state"]["a"] == before["steps_state"]["a"]


async def test_the_attempts_of_a_run_are_counted_in_the_database_as_they_are_told(shared: Stack) -> None:
    run_id = await shared.start(step("a"), step("b"))
    await shared.until(run_id, "completed")
    rows = await shared.sql("SELECT req_id FROM workflow_run_attempts WHERE run_id = $1", UUID(run_id))
    assert {row["req_id"] for row in rows} == {execution.req_id for execution in shared.gateway.ledger}
