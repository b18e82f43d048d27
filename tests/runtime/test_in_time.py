"""A word that was on disk before an approval expired counts, whoever looks at the run, and however late."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.machine.commands import Urgency
from tests.patience import eventually
from tests.runtime.harness import Rig, step

EXPIRES_MS = 1_500
BLIND: dict[str, Any] = {"sweep_period_s": 60.0, "linger_s": 0.1}
"""Settings of a node whose sweep finds nothing for the time of a test."""


def asks() -> Any:
    """A step that is rejected unless somebody agrees in time."""
    return step("a", manual=True) | {"approval": {"expires_in_ms": EXPIRES_MS, "on_expiry": "reject"}}


async def said_in_time(rig: Rig, run_id: Any) -> None:
    """An approval that nobody rang for, and that was on disk in time."""
    command_id = await rig.say(run_id, "approve", step_id="a", ring=False)
    early = """SELECT a.expires_at_ms > extract(epoch FROM c.created_at) * 1000 FROM workflow_run_approvals a
        JOIN workflow_run_commands c USING (run_id) WHERE c.id = $1 AND a.state = 'open'"""
    assert await rig.pool.fetchval(early, command_id), "this test was too slow to say anything"


async def expiry_is_past(rig: Rig, run_id: Any) -> None:
    late = """SELECT expires_at_ms < extract(epoch FROM clock_timestamp()) * 1000 FROM workflow_run_approvals
        WHERE run_id = $1"""
    await eventually(lambda: rig.pool.fetchval(late, run_id), what="the expiry")


async def test_it_counts_though_no_node_was_there_until_it_was_too_late(rig: Rig) -> None:
    node = await rig.start()
    run_id = await rig.create(asks())
    await rig.until(run_id, "paused", reason="awaiting_approval")
    await node.drain()
    rig.nodes.remove(node)
    await said_in_time(rig, run_id)
    await expiry_is_past(rig, run_id)
    await rig.start("n2")
    await rig.until(run_id, "completed")
    assert not await rig.events(run_id, "step.expired")


async def test_it_counts_though_its_bell_was_lost_and_the_run_wakes_because_its_time_is_up(rig: Rig) -> None:
    await rig.start(**BLIND)
    run_id = await rig.create(asks())
    await rig.until(run_id, "paused", reason="awaiting_approval")
    await said_in_time(rig, run_id)
    await rig.until(run_id, "completed", within_s=10)
    assert not await rig.events(run_id, "step.expired")


@pytest.mark.parametrize(("world", "asks_it", "urgency"), [("inbox", "read", "h"), ("claims", "open_commands", "c")])
async def test_it_counts_though_it_came_while_the_run_was_looked_at_for_something_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, world: str, asks_it: str, urgency: Urgency
) -> None:
    """The turn begins before the expiry, and by the time that all was read for it that is past."""
    node = await rig.start(**BLIND)
    run_id = await rig.create(asks())
    await rig.until(run_id, "paused", reason="awaiting_approval")
    host, said = node.runner._host, []
    read = getattr(getattr(host, f"_{world}"), asks_it)

    async def slowly(run_ids: Any) -> Any:
        found = await read(run_ids)
        if run_id in run_ids and not said:
            said.append(run_id)
            await said_in_time(rig, run_id)
            await expiry_is_past(rig, run_id)
        return found

    monkeypatch.setattr(getattr(host, f"_{world}"), asks_it, slowly)
    host._residents.ring(run_id, urgency)
    await rig.until(run_id, "completed", within_s=10)
    assert said
    assert not await rig.events(run_id, "step.expired")


async def test_it_counts_though_the_run_is_just_given_its_letters_one_by_one(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postgres refused a commit of it, and until the letter at fault is found no command is folded."""
    node = await rig.start(**BLIND)
    run_id = await rig.create(asks())
    await rig.until(run_id, "paused", reason="awaiting_approval")
    host, cautious = node.runner._host, []
    read = host._inbox.read

    async def slowly(run_ids: Any) -> Any:
        found, actor = await read(run_ids), host._residents.get(run_id)
        if run_id in run_ids and not cautious:
            assert actor is not None
            await said_in_time(rig, run_id)
            await expiry_is_past(rig, run_id)
            actor.caution = "alone"
            cautious.append(actor)
        return found

    monkeypatch.setattr(host._inbox, "read", slowly)
    host._residents.ring(run_id, "h")
    await rig.until(run_id, "completed", within_s=10)
    assert cautious
    assert not await rig.events(run_id, "step.expired")


async def test_nobody_said_anything_and_it_expires(rig: Rig) -> None:
    await rig.start(**BLIND)
    run_id = await rig.create(asks())
    assert (await rig.until(run_id, "failed")).error_code == "approval_expired"
