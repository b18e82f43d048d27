"""One run alone in quick steps, whose commits are appended to its log, under the same trouble as many at once are."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from daemon.dev.embedded import EmbeddedPostgres
from daemon.errors import StoreUnavailable
from daemon.machine.commands import RunId
from daemon.store.quarantine import quarantine
from tests.loss.backups import Restorable
from tests.loss.test_lost_commits import postgres_of_its_own
from tests.loss.test_postgres_restarts import durable, over
from tests.patience import eventually
from tests.runtime.harness import Rig, count, rig, step
from tests.store.wire import Wire

__all__ = ["durable", "over", "postgres_of_its_own"]

STEPS = 40
MORE_STEPS = 600
"""So many take longer than it takes to begin a quarantine."""
LANE = {"linger_s": 60, "lease_ttl_s": 4}
LONG_S = 60.0
APPENDED = "SELECT count(*) FROM workflow_run_pages WHERE run_id = $1 AND changes IS NOT NULL"
BEHIND = "SELECT written_seq < last_seq FROM workflow_run_heads WHERE id = $1"
SEED = 20261127


@pytest.fixture
async def wire(durable: EmbeddedPostgres) -> AsyncIterator[Wire]:
    with tempfile.TemporaryDirectory(prefix="rw-wire-") as home:
        opened = Wire(durable.url, Path(home))
        await opened.open()
        yield opened
        await opened.close()


async def lone(over: Rig, steps: int = STEPS) -> RunId:
    """A run of many quick steps, under way."""
    return await over.create(*(step(f"s{n}") for n in range(steps)))


async def whole(over: Rig, run_id: RunId, *, least: int = STEPS // 2) -> None:
    """It has ended, each call was made once, and so much of it was appended that this says something of appends."""
    await eventually(lambda: _completed(over, run_id), within_s=LONG_S, what="the run's end")
    told = await over.events(run_id)  # dense, or this fails
    assert [event["type"] for event in told].count("step.completed") == STEPS
    head, row = await over.head(run_id), await over.row(run_id)
    assert row["last_seq"] == head.last_seq == len(told)
    assert await over.pool.fetchval("SELECT count(*) FROM workflow_run_attempts WHERE state = 'done'") == STEPS
    assert await over.pool.fetchval(APPENDED, run_id) >= least
    over.never_twice(STEPS)


async def _completed(over: Rig, run_id: RunId) -> bool:
    try:
        return bool(await over.pool.fetchval("SELECT status = 'completed' FROM workflow_runs WHERE id = $1", run_id))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False


async def test_crashes_of_postgres_in_the_midst_of_appends(over: Rig, durable: EmbeddedPostgres) -> None:
    node = await over.start("n1", **LANE)
    lost, run_id = count("runwarden_commits_lost_total"), await lone(over)
    for so_far in (7, 17, 27):
        await over.executing(so_far)
        os.kill(durable.pid, signal.SIGKILL)
        await asyncio.to_thread(durable.stop)
        await asyncio.to_thread(durable.start)
    await whole(over, run_id)
    assert count("runwarden_commits_lost_total") == lost, "what it acknowledged it has kept"
    assert node.healthy


async def test_questions_and_answers_lost_in_the_midst_of_appends(over: Rig, wire: Wire) -> None:
    chance = random.Random(SEED)
    node = await over.start("n1", **LANE, postgres_url=wire.url)
    run_id = await lone(over)
    for so_far in range(3, STEPS, 3):
        await over.executing(so_far)
        if chance.random() < 0.3:
            wire.cut()
        else:
            wire.lose(chance.choice(("question", "answer")))
    await whole(over, run_id)
    assert wire.lost > 3
    assert node.healthy


async def test_nodes_gone_in_the_midst_of_appends_leave_nothing_behind(over: Rig) -> None:
    """Each of several owners goes on from what the one before it had appended, the call in flight included."""
    held, behind = (7, 17, 27), 0
    run_id: RunId | None = None
    for number, so_far in enumerate((*held, STEPS)):
        node = await over.start(f"n{number}", linger_s=60, lease_ttl_s=1)
        run_id = run_id or await over.create(*(step(f"s{n}", "gated" if n + 1 in held else "ok") for n in range(STEPS)))
        over.tools.gate.set()
        over.tools.gate.clear()
        await over.executing(so_far)
        if so_far < STEPS:
            await node.crash()
            over.nodes.remove(node)
            behind += await over.pool.fetchval(BEHIND, run_id)
    assert run_id is not None
    assert behind, "else every owner found the rows written"
    await whole(over, run_id)


@pytest.mark.usefixtures("rows_follow_late")
async def test_a_run_canceled_while_its_rows_are_behind_is_canceled_with_all_that_it_did(over: Rig) -> None:
    await over.start("n1", **LANE)
    run_id = await over.create(*(step(f"s{n}", "gated" if n == 4 else "ok") for n in range(8)))
    await over.told(run_id, "tool.status", 5)
    assert await over.pool.fetchval(BEHIND, run_id), "else nothing is shown here"
    await over.say(run_id, "cancel")
    await over.told(run_id, "tool.result", 5)
    states = await over.pool.fetch("SELECT status FROM workflow_run_steps ORDER BY step_index")
    assert [state for (state,) in states][:4] == ["success"] * 4
    head, row = await over.head(run_id), await over.row(run_id)
    assert (row["status"], row["last_seq"]) == ("canceled", head.last_seq)
    over.never_twice(5)


async def test_a_quarantine_while_a_run_is_appended_to_parks_it_at_its_last_event(
    over: Rig, durable: EmbeddedPostgres
) -> None:
    node = await over.start("n1", **LANE)
    run_id = await lone(over, MORE_STEPS)
    await over.executing(STEPS // 2)
    census = await quarantine(durable.url, really=True)
    assert (census.runs.total(), census.unreadable) == (1, 0)
    told = await over.events(run_id)  # dense, or this fails
    assert told[-1]["type"] == "step.paused"
    assert await over.pool.fetchval(BEHIND, run_id) is False
    calls = len(over.gateway.ledger)
    await over.say(run_id, "resume", confirm="run_again")
    await over.until(run_id, "completed", within_s=LONG_S)
    assert max(over.executions().values()) == 1
    assert calls < MORE_STEPS
    assert node.healthy


@pytest.fixture
async def beside(postgres_of_its_own: Restorable, redis_url: str, redis_prefix: str) -> AsyncIterator[Rig]:
    async with rig(postgres_of_its_own.url, redis_url, redis_prefix) as opened:
        yield opened


@pytest.fixture
def rows_follow_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a backup is taken while they are behind."""
    monkeypatch.setattr("daemon.store.journal.CHECKPOINT_AFTER_S", LONG_S)


async def backed_up(beside: Rig, of: Restorable) -> RunId:
    """A run in the midst of its fifth call, its rows behind its log, of which there is a backup."""
    run_id = await beside.create(*(step(f"s{n}", "gated" if n in (4, 8) else "ok") for n in range(10)))
    await beside.told(run_id, "tool.status", 5)
    await asyncio.to_thread(of.backup)
    assert await beside.pool.fetchval(BEHIND, run_id), "else nothing is shown here"
    return run_id


async def going_on(beside: Rig, calls: int) -> None:
    beside.tools.gate.set()
    beside.tools.gate.clear()
    await beside.executing(calls)


@pytest.mark.usefixtures("rows_follow_late")
async def test_an_owner_whose_appends_are_lost_parks_its_run(beside: Rig, postgres_of_its_own: Restorable) -> None:
    """The backup has some of what was appended; the rest it knows, and the Gateway has made the calls."""
    node = await beside.start("n1", **LANE)
    run_id = await backed_up(beside, postgres_of_its_own)
    had = (await beside.head(run_id)).last_seq
    await going_on(beside, 9)
    await beside.told(run_id, "tool.status", 9)
    await asyncio.to_thread(postgres_of_its_own.restore)
    beside.tools.gate.set()
    await eventually(lambda: _parked(beside, run_id), within_s=LONG_S, what="the run being parked")
    told = await beside.events(run_id)  # dense, or this fails
    assert [one["type"] for one in told[had:]] == ["step.paused"]
    assert (await beside.row(run_id))["last_seq"] == len(told)
    beside.never_twice(9)
    assert node.healthy


@pytest.mark.usefixtures("rows_follow_late")
async def test_a_backup_taken_while_rows_are_behind_is_as_good_as_another(
    beside: Rig, postgres_of_its_own: Restorable
) -> None:
    """Restored and quarantined, what was appended is there: the call that was in flight is asked for, not made."""
    node = await beside.start("n1", **LANE)
    run_id = await backed_up(beside, postgres_of_its_own)
    had = await beside.events(run_id)
    await node.crash()
    beside.nodes.remove(node)
    await asyncio.to_thread(postgres_of_its_own.restore)
    census = await quarantine(postgres_of_its_own.url, really=True)
    assert (census.runs.total(), census.unreadable) == (1, 0)
    assert (await beside.events(run_id))[: len(had)] == had
    beside.tools.gate.set()
    await beside.start("n2", **LANE)
    await beside.say(run_id, "resume", confirm="run_again")
    await beside.until(run_id, "completed")
    beside.never_twice(10)


async def _parked(over: Rig, run_id: RunId) -> bool:
    try:
        head = await over.head(run_id)
    except (StoreUnavailable, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return head.status == "paused" and head.error_code == "commits_lost"
