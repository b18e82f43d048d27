"""A run is carried: one commit a step, soft letters together, and a run that waits costs nothing until it is woken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from daemon.machine.state import Limits
from daemon.runtime import host
from tests.patience import eventually
from tests.runtime.harness import Rig, count, step


async def test_a_run_is_carried_from_its_creation_to_its_end(rig: Rig) -> None:
    await rig.start()
    run_id = await rig.create(step("a"), step("b", goes_on=True), step("c"))
    await rig.until(run_id, "completed")
    assert [event["step_id"] for event in await rig.events(run_id, "step.completed")] == ["a", "b", "c"]
    rig.never_twice(3)


async def test_acks_and_chunks_wait_for_company_and_are_committed_together(rig: Rig) -> None:
    """Three soft letters and more (202, INVOKE_ACK, CHUNKs) make one commit, after the hold and not before."""
    await rig.start(log_hold_s=1, stale_after_s=60)
    before = count("runwarden_commits_total")
    run_id = await rig.create(step("a", "talking", arguments={"lines": ["one", "two", "three"]}), ring=False)
    logs = await rig.told(run_id, "tool.log")
    (intended,), (status,) = await rig.events(run_id, "step.progress"), await rig.events(run_id, "tool.status")
    assert count("runwarden_commits_total") == before + 2, "the intent, and all the rest"
    assert {log["at"] for log in logs} == {status["at"]}
    assert [log["data"] for log in logs if log["channel"] == "stdout"] == ["one\ntwo\nthree\n"]
    assert status["at"] - intended["at"] >= 0.95
    rig.tools.gate.set()
    await rig.until(run_id, "completed")


async def test_a_result_does_not_wait_for_company(rig: Rig) -> None:
    node = await rig.start(limits=Limits(ack_timeout_ms=60_000))
    node.runner._host._residents._hold_s = 60  # nothing but the RESULT wakes it while this test waits
    run_id = await rig.create(step("a", "talking", arguments={"lines": ["one"]}))
    await rig.executing(1)
    rig.tools.gate.set()
    await rig.until(run_id, "completed")


async def test_a_run_that_waits_for_a_tool_becomes_passive_and_its_result_wakes_it(rig: Rig) -> None:
    await rig.start(linger_s=0.1)
    run_id = await rig.create(step("a", "gated"), step("b"))
    row = await rig.passive(run_id)
    assert row["wake_at"] is not None, "the tool's deadline"
    assert count("runwarden_resident_runs") == 0
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    assert (await rig.row(run_id))["epoch"] >= 2
    rig.never_twice(2)


async def test_a_run_that_is_asked_about_while_it_becomes_passive_is_looked_at_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer finds nobody any more, and nobody else would ask before the first look."""
    node = await rig.start(linger_s=0.05)
    leases, gateways = node.runner._ownership._leases, node.runner._dispatch._gateways
    release, result, left, asked = leases.release, gateways.result, asyncio.Event(), []

    async def result_late(req_id: str) -> Any:
        await left.wait()
        return await result(req_id)

    async def release_late(held: Any, **how: Any) -> Any:
        if not asked:
            rig.tools.gate.set()
            await eventually(lambda: rig.tools.running == 0)
            node.runner.missed()
            await eventually(lambda: not node.runner._sweep._missed, what="the passive runs being woken")
            node.runner.unsure()
            asked.append(held)
        return await release(held, **how)

    monkeypatch.setattr(leases, "release", release_late)
    monkeypatch.setattr(gateways, "result", result_late)
    with rig.gateway.weather.during("lost_result"):
        run_id = await rig.create(step("a", "gated"))
        await eventually(lambda: asked and count("runwarden_resident_runs") == 0)
        left.set()
        await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_run_that_waits_for_a_person_becomes_passive_and_a_command_wakes_it(rig: Rig) -> None:
    await rig.start(linger_s=0.1)
    run_id = await rig.create(step("a", manual=True))
    row = await rig.passive(run_id)
    assert (row["status"], row["wake_at"]) == ("paused", None)
    await rig.say(run_id, "approve", step_id="a")
    await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_passive_run_wakes_when_its_deadline_has_come(rig: Rig) -> None:
    await rig.start(linger_s=0.1)
    run_id = await rig.create(step("a", "gated", timeout_ms=2_600))
    await rig.passive(run_id)
    await rig.until(run_id, "paused", reason="step_failed")
    (result,) = await rig.events(run_id, "tool.result")
    assert result["outcome"] == "timeout"
    rig.never_twice(1)


async def test_a_run_whose_bell_was_lost_is_found_by_the_sweep(rig: Rig) -> None:
    await rig.start()
    run_id = await rig.create(step("a"), ring=False)
    await rig.until(run_id, "completed")


async def test_a_command_whose_bell_was_lost_is_found_by_the_sweep(rig: Rig) -> None:
    await rig.start(linger_s=0.1)
    resident, passive = await rig.create(step("a", manual=True)), await rig.create(step("a", manual=True))
    await rig.passive(passive)
    await rig.until(resident, "paused")
    for run_id in (resident, passive):
        await rig.say(run_id, "approve", step_id="a", ring=False)
    for run_id in (resident, passive):
        await rig.until(run_id, "completed")


async def test_a_finished_run_leaves_memory_and_redis(rig: Rig) -> None:
    await rig.start(linger_s=0.1)
    run_id = await rig.create(step("a"))
    await rig.until(run_id, "completed")
    row = await rig.passive(run_id)
    assert row["wake_at"] is None
    await eventually(lambda: count("runwarden_resident_runs") == 0)

    async def nothing_left() -> bool:
        return not [key for key in await rig.redis.redis.keys("*") if run_id.hex.encode() in key]

    await eventually(nothing_left)


async def test_no_more_runs_are_resident_than_there_is_room_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NEAR_MS", 100_000)  # whoever waits for a tool stays
    await rig.start(residents=2, linger_s=0)
    runs = [await rig.create(step("a", "gated"), step("b")) for _ in range(5)]
    await rig.executing(2)
    refused = count("runwarden_sweep_marks_total", why="due")
    await eventually(lambda: count("runwarden_sweep_marks_total", why="due") >= refused + 3)  # a sweep has offered all
    assert rig.tools.most_running == 2
    assert count("runwarden_resident_runs") == 2
    rig.tools.gate.set()
    for run_id in runs:
        await rig.until(run_id, "completed")
    rig.never_twice(10)
