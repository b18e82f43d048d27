"""Postgres comes back without its last commits: whoever knew more parks the run, and nothing runs again unseen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from daemon.cli import main
from daemon.errors import StoreUnavailable
from daemon.machine.commands import RunId
from daemon.store.commands import Commands
from tests.loss.backups import Restorable, restorable
from tests.patience import eventually, let_pass
from tests.runtime.harness import Rig, count, rig, step

QUIET_S = 1.0
"""Ten sweeps and more: whatever was going to happen by itself has happened by then."""


@pytest.fixture
def postgres_of_its_own(servers_dir: Path) -> Iterator[Restorable]:
    with restorable(servers_dir) as opened:
        yield opened


@pytest.fixture
async def over(postgres_of_its_own: Restorable, redis_url: str, redis_prefix: str) -> AsyncIterator[Rig]:
    async with rig(postgres_of_its_own.url, redis_url, redis_prefix) as opened:
        yield opened


async def parked(over: Rig, run_id: RunId) -> None:
    head = await over.until(run_id, "paused", reason="engine_interrupted")
    assert head.error_code == "commits_lost"
    assert head.error_message
    (event,) = [one for one in await over.events(run_id, "step.paused") if one["paused_reason"] == "engine_interrupted"]
    assert event["message"] == head.error_message


async def verdict(over: Rig, run_id: RunId, kind: Any, **payload: Any) -> tuple[str | None, str | None]:
    """What became of a command."""
    command_id = await over.say(run_id, kind, **payload)

    async def decided() -> Any:
        row = await Commands(over.pool).get(command_id, run_id=run_id)
        return row if row is not None and row.verdict is not None else None

    row = await eventually(decided)
    return row.verdict, row.code


async def resumed(over: Rig, run_id: RunId) -> None:
    """A person looks: without a word that it may run again it stands, with it it goes on."""
    assert await verdict(over, run_id, "resume") == ("refused", "confirm_required")
    assert await verdict(over, run_id, "resume", confirm="run_again") == ("applied", None)


def restore(of: Restorable) -> Any:
    return asyncio.to_thread(of.restore)


async def test_a_node_that_lives_on_parks_the_runs_it_knew_further_on(
    over: Rig, postgres_of_its_own: Restorable
) -> None:
    """Some went on from the backup to the next tool, one waits for the same tool all the time, one has come to be."""
    node = await over.start("n1", linger_s=60, lease_ttl_s=4)
    ahead = [await over.create(step("a"), step("b", manual=True), step("c", "gated"), step("d")) for _ in range(3)]
    steady = await over.create(step("a", "gated"), step("b"))
    for run_id in ahead:
        await over.until(run_id, "paused", reason="awaiting_approval")
    await over.told(steady, "tool.status")
    await asyncio.to_thread(postgres_of_its_own.backup)
    for run_id in ahead:
        await over.say(run_id, "approve", step_id="b")
    lost = await over.create(step("a", "gated"))
    await over.executing(3 + 1 + 3 + 3 + 1)
    calls = len(over.gateway.ledger)
    commits_lost = count("runwarden_commits_lost_total")

    await restore(postgres_of_its_own)
    over.tools.gate.set()

    for run_id in ahead:
        await parked(over, run_id)
    await over.until(steady, "completed")
    assert await over.pool.fetchval("SELECT count(*) FROM workflow_runs WHERE id = $1", lost) == 0
    assert count("runwarden_commits_lost_total") == commits_lost + len(ahead)
    await let_pass(QUIET_S)
    assert node.healthy
    over.never_twice(calls + 1)

    await resumed(over, ahead[0])  # it had done b, and done or begun c, in the time that was lost
    await over.until(ahead[0], "paused", reason="awaiting_approval")
    over.never_twice(calls + 1)
    await over.say(ahead[0], "approve", step_id="b")
    await over.until(ahead[0], "completed")
    assert sorted(set(over.executions().values())) == [1, 2], "twice by the word of a person who was told"


async def test_a_run_that_was_let_go_further_on_is_parked_by_the_node_that_let_it_go(
    over: Rig, postgres_of_its_own: Restorable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when Postgres goes away once more, between the claim that tells of it and the parking."""
    node = await over.start("n1", linger_s=0.05, lease_ttl_s=4)
    run_id = await over.create(step("a"), step("b", manual=True), step("c"), step("d", manual=True))
    await over.until(run_id, "paused", reason="awaiting_approval")
    await over.passive(run_id)
    await asyncio.to_thread(postgres_of_its_own.backup)
    await over.say(run_id, "approve", step_id="b")
    await over.until(run_id, "paused", reason="awaiting_approval")
    await over.passive(run_id)
    calls = len(over.gateway.ledger)
    await restore(postgres_of_its_own)
    await eventually(lambda: _answers(over))
    claims, away = node.runner._ownership._claims, [True]
    park_lost = claims.park_lost

    async def park_lost_later(known: Any) -> Any:
        if away:
            away.pop()
            raise StoreUnavailable
        return await park_lost(known)

    monkeypatch.setattr(claims, "park_lost", park_lost_later)
    await over.say(run_id, "approve", step_id="b")  # somebody sees it wait for the first approval again, and gives it
    await parked(over, run_id)
    assert not away
    await let_pass(QUIET_S)
    over.never_twice(calls)


async def _answers(over: Rig) -> bool:
    try:
        return bool(await over.pool.fetchval("SELECT true"))
    except Exception:  # noqa: BLE001 - whatever it is, the server is not there yet
        return False


async def test_backup_restore_quarantine_and_a_start(over: Rig, postgres_of_its_own: Restorable) -> None:
    """The rehearsal of the operator's page: nodes stopped, a restore, ``runwarden quarantine``, nodes started."""
    first = await over.start("n1", linger_s=0.05)
    finished = await over.create(step("a"))
    await over.until(finished, "completed")
    awaiting = await over.create(step("a"), step("b", manual=True), step("c"))
    await over.until(awaiting, "paused", reason="awaiting_approval")
    in_flight = await over.create(step("a", "gated"), step("b"), step("c", manual=True))
    await over.told(in_flight, "tool.status")
    await asyncio.to_thread(postgres_of_its_own.backup)
    over.tools.gate.set()
    await over.until(in_flight, "paused", reason="awaiting_approval")
    await over.say(awaiting, "approve", step_id="b")
    await over.until(awaiting, "completed")
    calls = len(over.gateway.ledger)
    await first.drain()
    over.nodes.remove(first)

    await restore(postgres_of_its_own)
    environment = {"RUNWARDEN_POSTGRES_URL": postgres_of_its_own.url}
    counted = await asyncio.to_thread(CliRunner().invoke, main, ["quarantine"], env=environment)
    assert "2 unfinished runs would be parked." in counted.output
    done = await asyncio.to_thread(CliRunner().invoke, main, ["quarantine", "--yes"], env=environment)
    assert done.exit_code == 0
    assert "1  paused, awaiting_approval" in done.output
    assert "1  running" in done.output
    assert "2 unfinished runs were parked." in done.output

    await over.start("n2", linger_s=0.05)
    await let_pass(QUIET_S)
    for run_id in (awaiting, in_flight):
        await parked(over, run_id)
    assert (await over.head(finished)).status == "completed"
    over.never_twice(calls)

    await resumed(over, in_flight)  # what its attempt came to is told by the Gateway's store, so it is not made again
    await over.until(in_flight, "paused", reason="awaiting_approval")
    assert [one["outcome"] for one in await over.events(in_flight, "tool.result")] == ["done", "done"]
    await resumed(over, awaiting)
    await over.until(awaiting, "paused", reason="awaiting_approval")
    assert sum(over.executions().values()) == calls + 1, "b of the run in flight, by the word of a person who was told"
