"""RESULTs that are lost, late, doubled, forged or out of order: what the run does. Tests are named by weather."""

from __future__ import annotations

import json

import pytest

from daemon.machine import effects
from tests.api.harness import AGENT, step
from tests.patience import eventually
from tests.weather.outdoors import ANSWERED_MS, BRIEFLY, ONE_STEP, Outdoors, attempt_of, count


async def test_lost_result_is_found_in_the_store_when_the_deadline_has_come(out: Outdoors) -> None:
    out.patience(cancel_grace_ms=ANSWERED_MS)
    out.weather.change("lost_result")
    run_id = await out.live.start(step("a", **BRIEFLY))
    run = await out.completed(run_id)
    assert attempt_of(run)["ok"] is True
    assert (await out.verdict(run_id))["outcome"] == "done"
    assert out.ran == ["ok"]


async def test_lost_result_is_found_when_its_agent_connects_anew(out: Outdoors) -> None:
    """Long before the look at 30 seconds of age, and a minute before the deadline."""
    out.weather.change("lost_result")
    run_id = await out.live.start(step("a"))
    await eventually(lambda: out.ran == ["ok"], what="the tool having run")
    out.live.gateway.publish({"v": 1, "type": "TOOLS", "agent_id": AGENT, "ts": 1, "payload": {"tools": []}})
    run = await out.live.until(run_id, "completed")
    assert attempt_of(run)["ok"] is True
    assert out.ran == ["ok"]


async def test_lost_result_is_found_by_a_cancel_that_came_too_late(out: Outdoors) -> None:
    out.patience(cancel_grace_ms=ANSWERED_MS)
    out.weather.change("lost_result")
    run_id = await out.live.start(step("a"), step("b"))
    await eventually(lambda: out.gateway.of("RESULT"), what="the tool's end")
    assert (await out.live.decide(run_id, "cancel")).body["status"] == "canceled"
    await eventually(lambda: out.events(run_id, "tool.result"), what="the answer to the inquiry")
    told = await out.verdict(run_id)
    assert (told["outcome"], told["cancel"]) == ("done", "too_late")
    assert (await out.live.run(run_id))["status"] == "canceled"
    assert out.ran == ["ok"]


async def test_lost_result_after_cancel_leaves_a_canceled_run_whose_call_was_stopped(out: Outdoors) -> None:
    """The CANCEL_ACK says so; the RESULT is not needed."""
    out.patience(cancel_grace_ms=ANSWERED_MS)
    out.weather.change("lost_result_after_cancel")
    run_id = await out.live.start(step("a", "slow"), step("b"))
    await out.begun()
    answered = await out.live.decide(run_id, "cancel")
    assert (answered.status, answered.body["status"]) == (200, "canceled")
    await eventually(lambda: out.events(run_id, "tool.result"), what="the agent's word")
    told = await out.verdict(run_id)
    assert (told["outcome"], told["answered"], told["cancel"]) == ("canceled", False, "stopped")
    assert [interval.how for interval in out.tools.intervals] == ["canceled"]
    assert out.ran == ["slow"]


async def test_lost_result_after_cancel_without_an_ack_leaves_the_evidence_unknown(out: Outdoors) -> None:
    """The agent is frozen when the cancel comes: it says nothing at all, and the run is canceled all the same."""
    run_id = await out.live.start(step("a", "slow"))
    await out.begun()
    out.weather.change("lost_result_after_cancel", "frozen_agent")
    assert (await out.live.decide(run_id, "cancel")).body["status"] == "canceled"
    await eventually(lambda: out.events(run_id, "tool.result"), what="the end of the grace")
    told = await out.verdict(run_id)
    assert (told["outcome"], told["cancel"]) == ("unknown", "unknown")
    assert (await out.live.run(run_id))["status"] == "canceled"
    assert out.ran == ["slow"]


async def test_lost_result_after_timeout_is_a_timeout_when_the_agent_confirms_our_deadline(out: Outdoors) -> None:
    out.patience(cancel_grace_ms=ANSWERED_MS)
    out.weather.change("lost_result_after_timeout", "lost_result_after_cancel")
    run_id = await out.live.start(step("a", "slow", **BRIEFLY))
    run = await out.live.until(run_id, "paused")
    assert run["paused_reason"] == "step_failed"
    assert (await out.verdict(run_id))["outcome"] == "timeout"
    assert attempt_of(run)["error"]["code"] == "timeout"
    assert out.ran == ["slow"]


async def test_lost_result_after_timeout_is_unknown_when_the_agents_clock_was_first(
    out: Outdoors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent whose clock runs ahead ended the call before our deadline: our CANCEL finds nothing."""
    monkeypatch.setattr(effects, "AGENT_BACKSTOP_MS", -1_300)
    out.weather.change("lost_result_after_timeout")
    run_id = await out.live.start(step("a", "slow", timeout_ms=1_500))
    await out.paused(run_id)
    told = await out.verdict(run_id)
    assert (told["outcome"], told["state"], told["answered"]) == ("unknown", "timeout", False)
    assert not out.gateway.of("RESULT")
    assert out.ran == ["slow"]


async def test_chunk_after_result_is_still_in_the_log(out: Outdoors) -> None:
    out.weather.change("chunk_after_result")
    run_id = await out.live.start(step("a", "streaming", arguments={"lines": 3}))
    await out.live.at_rest(run_id, "completed", "a")

    async def all_said() -> bool:
        said = "".join(log["data"] for log in await out.events(run_id, "tool.log") if log["channel"] == "stdout")
        return [line[:6] for line in said.splitlines()] == ["000000", "000001", "000002"]

    await eventually(all_said, what="all three lines")
    said = [event["type"] for event in out.gateway.published if event.get("req_id")]
    assert said == ["INVOKE_ACK", "RESULT", "CHUNK", "CHUNK", "CHUNK", "CHUNK"]
    assert await out.story(run_id) == ["run.created", *ONE_STEP, "run.completed"]
    assert out.ran == ["streaming"]


async def test_duplicate_result_changes_nothing(out: Outdoors) -> None:
    out.weather.change("duplicate_result")
    run_id = await out.live.start(step("a"), step("b", "failing", on_error="continue"), step("c"))
    await out.completed(run_id)
    assert len(out.gateway.of("RESULT")) == 6
    assert [told["outcome"] for told in await out.events(run_id, "tool.result")] == ["done", "failed", "done"]
    assert await out.events(run_id, "tool.evidence") == []
    assert out.ran == ["ok", "failing", "ok"]


async def test_duplicate_result_and_four_other_harmless_oddities_together_change_nothing(out: Outdoors) -> None:
    out.weather.change("duplicate_result", "chunk_after_result", "false_disconnect", "forged_result", "ack_before_202")
    runs = [await out.live.start(step("a"), step("b", "streaming"), step("c", "big")) for _ in range(5)]
    for run_id in runs:
        run = await out.completed(run_id)
        assert [attempt_of(run, step_id)["ok"] for step_id in "abc"] == [True] * 3
        assert await out.events(run_id, "tool.evidence") == []
    assert sorted(out.ran) == sorted(["ok", "streaming", "big"] * 5)


async def test_late_result_settles_the_outcome_that_nobody_has_decided_yet(out: Outdoors) -> None:
    out.weather.change("late_result")
    run_id = await out.live.start(step("a", **BRIEFLY), step("b"))
    await out.paused(run_id)
    assert (await out.verdict(run_id))["outcome"] == "unknown"
    assert out.ran == ["ok"]
    out.weather.change()
    await out.settled(run_id)
    assert out.ran == ["ok", "ok"], "each step once"


async def test_late_result_is_only_evidence_once_a_person_has_decided(out: Outdoors) -> None:
    """Resumed, the tool runs again, by a person's word; each RESULT then speaks for its own attempt."""
    out.weather.change("late_result")
    run_id = await out.live.start(step("a", **BRIEFLY))
    await out.paused(run_id)
    resumed = await out.live.decide(run_id, "resume", {"confirm": "run_again"})
    assert (resumed.status, resumed.body["status"]) == (200, "running")
    run = await out.paused(run_id)
    assert [attempt["ok"] for attempt in run["steps_state"]["a"]["attempts"]] == [False, False]
    out.weather.change()
    run = await out.live.until(run_id, "completed")
    assert [attempt["ok"] for attempt in run["steps_state"]["a"]["attempts"]] == [False, True]
    assert [told.get("settles") for told in await out.events(run_id, "tool.evidence")] == [None, "done"]
    assert out.ran == ["ok", "ok"]


async def test_late_result_after_a_cancel_moves_no_status(out: Outdoors) -> None:
    out.weather.change("late_result")
    run_id = await out.live.start(step("a"))
    await eventually(lambda: out.tools.intervals, what="the tool's end")
    assert (await out.live.decide(run_id, "cancel")).body["status"] == "canceled"
    await eventually(lambda: out.events(run_id, "tool.result"), what="the end of the grace")
    assert (await out.verdict(run_id))["cancel"] == "unknown"
    out.weather.change()
    await out.kept(run_id, preview='"ok"')
    assert (await out.live.run(run_id))["status"] == "canceled"
    assert out.ran == ["ok"]


async def test_sse_overflow_costs_time_and_no_result(out: Outdoors) -> None:
    out.patience(cancel_grace_ms=ANSWERED_MS)
    out.weather.change("sse_overflow")
    run_id = await out.live.start(step("a", **BRIEFLY), step("b", **BRIEFLY))
    await out.completed(run_id)
    assert [told["outcome"] for told in await out.events(run_id, "tool.result")] == ["done", "done"]
    assert out.ran == ["ok", "ok"]


async def test_sse_overflow_without_a_result_store_leaves_the_verdict_to_the_deadline(out: Outdoors) -> None:
    out.weather.change("sse_overflow", "no_result_store")
    run_id = await out.live.start(step("a", **BRIEFLY))
    await out.paused(run_id)
    assert out.ran == ["ok"]


async def test_no_result_store_leaves_the_verdict_to_the_deadline(out: Outdoors) -> None:
    before = count("runwarden_gateway_calls_total", verb="inquire", outcome="unsupported", gateway="")
    out.weather.change("no_result_store", "lost_result")
    run_id = await out.live.start(step("a", **BRIEFLY), step("b"))
    run = await out.paused(run_id)
    assert run["steps_state"]["b"]["attempts"] == []
    told = await out.verdict(run_id)
    assert (told["outcome"], told["duration_ms"] >= BRIEFLY["timeout_ms"]) == ("unknown", True)
    assert count("runwarden_gateway_calls_total", verb="inquire", outcome="unsupported", gateway="") > before
    assert out.ran == ["ok"]


async def test_forged_result_is_ignored_and_counted(out: Outdoors) -> None:
    strange = count("runwarden_strange_letters_total")
    dropped = count("runwarden_ingest_dropped_total")
    out.weather.change("forged_result")
    run_id = await out.live.start(step("a", "slow"))
    await eventually(lambda: count("runwarden_strange_letters_total") == strange + 1, what="the stranger being counted")
    assert count("runwarden_ingest_dropped_total") == dropped + 1
    assert (await out.live.run(run_id))["status"] == "running"
    out.tools.release.set()
    run = await out.completed(run_id)
    assert "forged" not in json.dumps(run) + json.dumps(await out.live.log(run_id))
    assert out.ran == ["slow"]


async def test_stolen_req_id_is_believed_which_is_why_it_cannot_be_guessed(out: Outdoors) -> None:
    """Whoever reads a req_id (in the API, with the owner's token) and reaches the tunnel can answer for the agent."""
    out.weather.change("stolen_req_id")
    run_id = await out.live.start(step("a", "slow"))
    run = await out.completed(run_id)
    assert attempt_of(run)["result_json"]["content"][0]["text"] == "forged"
    out.tools.release.set()
    await eventually(lambda: len(out.gateway.of("RESULT")) == 2, what="the agent's own RESULT")
    after, before = attempt_of(await out.live.run(run_id)), attempt_of(run)
    assert {**after, "log_preview": ""} == {**before, "log_preview": ""}  # its log may still come
    assert out.ran == ["slow"]


async def test_ack_before_202_is_no_different(out: Outdoors) -> None:
    out.weather.change("ack_before_202")
    run_id = await out.live.start(step("a"), step("b"))
    await out.completed(run_id)
    assert await out.story(run_id) == ["run.created", *ONE_STEP, *ONE_STEP, "run.completed"]
    assert out.ran == ["ok", "ok"]


async def test_rounded_integers_are_what_the_tool_gets_and_what_comes_back(out: Outdoors) -> None:
    """The workflow keeps what was written, the ledger and the result show what a big integer became on the way.

    Such integers are refused today; workflows that are older than that still have them.
    """
    out.weather.change("rounded_integers")
    workflow = await out.live.workflow(step("a", "bridge__echo", arguments={"big": 0, "text": str(2**53 + 1)}))
    old = "UPDATE workflows SET spec = replace(spec::text, '\"big\":0', $2)::json WHERE id = $1::uuid"
    await out.live.sql(old, workflow, f'"big":{2**53 + 1}')
    run_id = (await out.live.post("/v1/workflow-runs", {"workflow_id": workflow})).body["run_id"]
    run = await out.completed(run_id)
    assert run["workflow_snapshot"]["steps"][0]["tool_config"]["arguments"]["big"] == 2**53 + 1
    arrived = {"big": 2**53, "text": str(2**53 + 1)}
    assert [execution.arguments for execution in out.gateway.ledger] == [arrived]
    assert attempt_of(run)["result_json"] == {"echo": arrived}
