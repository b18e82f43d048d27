"""Looks at passive runs: nobody claims them for it, an answer wakes them, and whoever dies meanwhile costs nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from daemon.machine.commands import RunId
from daemon.machine.state import Limits
from daemon.runtime import looks
from daemon.runtime.looks import AGAIN_MS
from tests.patience import PATIENCE_S, eventually
from tests.runtime.harness import Node, Rig, count, step


async def _wake(rig: Rig, run_id: RunId) -> datetime:
    """Make a passive run due, as if the time of its look had come."""
    at: datetime = await rig.pool.fetchval(
        "UPDATE workflow_runs SET wake_at = clock_timestamp() WHERE id = $1 RETURNING wake_at", run_id
    )
    return at


async def _waits(rig: Rig) -> tuple[RunId, dict[str, Any]]:
    """A run whose tool was acknowledged and runs, and its row now that nobody holds it."""
    run_id = await rig.create(step("a", "gated"))
    await rig.told(run_id, "tool.status")
    return run_id, await rig.passive(run_id)


def _hold_answers(node: Node, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, asyncio.Event]:
    """From now on the answers about passive runs of this node wait; (somebody asked, let them come)."""
    results, asked, come = node.runner._looks._results, asyncio.Event(), asyncio.Event()
    of = results.of

    async def late(req_ids: Any, **how: Any) -> Any:
        found = await of(req_ids, **how)
        asked.set()
        await come.wait()
        return found

    monkeypatch.setattr(results, "of", late)
    return asked, come


async def test_a_look_that_finds_nothing_claims_nothing_and_moves_the_alarm(rig: Rig) -> None:
    await rig.start(linger_s=0.05)
    run_id, row = await _waits(rig)
    before, claims = (
        count("runwarden_looks_total", outcome="nothing"),
        count("runwarden_claims_total", outcome="claimed"),
    )
    await _wake(rig, run_id)
    await eventually(lambda: count("runwarden_looks_total", outcome="nothing") == before + 1, what="a look")
    assert await rig.row(run_id) == row, "the same alarm as before: the attempt is not yet 30 s old"
    assert count("runwarden_claims_total", outcome="claimed") == claims
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_result_that_nobody_heard_is_found_by_the_look_of_a_passive_run(rig: Rig) -> None:
    await rig.start(linger_s=0.05)
    run_id, row = await _waits(rig)
    found = count("runwarden_looks_total", outcome="found")
    with rig.gateway.weather.during("lost_result"):
        rig.tools.gate.set()
        await eventually(lambda: rig.tools.running == 0)
        await _wake(rig, run_id)
        await rig.until(run_id, "completed")
    await eventually(lambda: count("runwarden_looks_total", outcome="found") > found, what="the look being counted")
    assert (await rig.row(run_id))["epoch"] == row["epoch"] + 1, "claimed once, for the RESULT"
    (result,) = await rig.events(run_id, "tool.result")
    assert result["outcome"] == "done"
    rig.never_twice(1)


async def test_an_outcome_that_a_person_must_decide_is_settled_by_a_look(rig: Rig) -> None:
    """The RESULT was not there when the call was given up, and was not heard when it came."""
    await rig.start(linger_s=0.05, limits=Limits(cancel_grace_ms=300))
    with rig.gateway.weather.during("late_result"):
        run_id = await rig.create(step("a", timeout_ms=300))
        await rig.until(run_id, "paused", reason="outcome_unknown")
        await rig.passive(run_id)
        (call,) = await rig.events(run_id, "tool.result")
        stored = {"v": 1, "type": "RESULT", "agent_id": "agent-1", "req_id": call["req_id"], "ts": 1}
        with rig.gateway.weather.during("lost_result"):
            rig.gateway.publish(stored | {"payload": {"ok": True, "result_json": {"content": []}}})
        await _wake(rig, run_id)
        await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_node_that_dies_while_it_looks_leaves_the_look_to_the_next(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await rig.start("n1", linger_s=0.05)
    run_id, _ = await _waits(rig)
    asked, _ = _hold_answers(first, monkeypatch)
    with rig.gateway.weather.during("lost_result"):
        rig.tools.gate.set()
        await eventually(lambda: rig.tools.running == 0)
        due = await _wake(rig, run_id)
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        await first.crash()
        rig.nodes.remove(first)
        assert (await rig.row(run_id))["wake_at"] == due
        await rig.redis.redis.delete(rig.keys.role("sweep"))  # the dead one's time is over
        await rig.start("n2", linger_s=0.05)
        await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_claim_that_happens_during_the_look_is_not_written_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await rig.start(linger_s=0.05)
    run_id, _ = await _waits(rig)
    asked, come = _hold_answers(node, monkeypatch)
    overtaken = count("runwarden_looks_total", outcome="overtaken")
    await _wake(rig, run_id)
    await asyncio.wait_for(asked.wait(), PATIENCE_S)
    monkeypatch.setattr(node.runner._host, "_linger_s", 60)
    await rig.ring(run_id)

    async def owned() -> dict[str, Any] | None:
        row = await rig.row(run_id)
        return row if row["owner"] is not None else None

    row = await eventually(owned, what="the claim")
    come.set()
    await eventually(lambda: count("runwarden_looks_total", outcome="overtaken") > overtaken, what="the look's end")
    after = await rig.row(run_id)
    assert (after["owner"], after["epoch"], after["wake_at"]) == (row["owner"], row["epoch"], None)
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_who_is_woken_during_the_look_is_looked_at_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A RESULT that goes by after we asked, with the gap that swallowed it: the answer was older than the gap."""
    node = await rig.start(linger_s=0.05)
    run_id, _ = await _waits(rig)
    asked, come = _hold_answers(node, monkeypatch)
    await _wake(rig, run_id)
    await asyncio.wait_for(asked.wait(), PATIENCE_S)
    with rig.gateway.weather.during("lost_result"):
        rig.tools.gate.set()
        await eventually(lambda: rig.tools.running == 0)
        node.runner.missed()
        await eventually(lambda: not node.runner._sweep._missed, what="the passive runs being woken")
        come.set()
        await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_letter_whose_offer_was_lost_is_found_by_a_look_where_nobody_stores_results(rig: Rig) -> None:
    await rig.start(linger_s=0.05)
    run_id, _ = await _waits(rig)
    (call,) = await rig.events(run_id, "step.progress")
    letter = (
        b'{"v":1,"type":"RESULT","agent_id":"agent-1","req_id":"%b","payload":{"ok":true}}' % call["req_id"].encode()
    )
    with rig.gateway.weather.during("no_result_store"):
        await rig.redis.redis.xadd(rig.keys.inbox(run_id), {"e": letter, "t": 0, "n": 0})
        await _wake(rig, run_id)
        await rig.until(run_id, "completed")
    rig.tools.gate.set()
    rig.never_twice(1)


async def _moved(rig: Rig, run_id: RunId, due: datetime) -> None:
    """Wait until the look is put off, not for long."""

    async def moved() -> datetime | None:
        at: datetime = (await rig.row(run_id))["wake_at"]
        return at if at != due else None

    again = await eventually(moved, what="the next look")
    assert timedelta(0) < again - due <= timedelta(milliseconds=AGAIN_MS + 2_000)
    assert again > datetime.now(UTC)


async def test_while_the_gateway_is_away_the_look_is_repeated_soon(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await rig.start(linger_s=0.05)
    run_id, _ = await _waits(rig)

    async def of(req_ids: Any, **how: Any) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(node.runner._looks._results, "of", of)
    await _moved(rig, run_id, await _wake(rig, run_id))
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_more_looks_than_there_is_room_for_are_put_off_and_hide_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.start(linger_s=0.05)
    run_id, _ = await _waits(rig)
    postponed = count("runwarden_looks_total", outcome="postponed")
    monkeypatch.setattr(looks, "QUEUE", 0)
    await _moved(rig, run_id, await _wake(rig, run_id))
    assert count("runwarden_looks_total", outcome="postponed") == postponed + 1
    rig.tools.gate.set()
    await rig.until(run_id, "completed")
    rig.never_twice(1)
