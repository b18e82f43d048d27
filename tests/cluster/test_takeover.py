"""A node dies, stalls or leaves: its runs go on elsewhere, in time, and nothing runs twice."""

from __future__ import annotations

import asyncio
import signal
import time
from datetime import datetime

import pytest

from tests.api.harness import Stack, stack, step
from tests.cluster.harness import TAKEOVER_S, Cluster, Gate, runner_of
from tests.patience import eventually
from tests.stopwatch import Stopwatch

LOST = (
    "another node took the lease",
    "fenced: another node owns the run",
    "fenced: other nodes had these runs",
)
"""What a node says of runs that are not its own any more, depending on where it notices."""


async def test_the_runs_of_a_killed_node_continue_elsewhere_within_ttl_and_two_sweeps(several: Cluster) -> None:
    first = await several.start("first", linger_s=60)
    ask = several.at(first)
    runs = [await ask.start(step("a", "slow"), step("b")) for _ in range(20)]
    await eventually(lambda: len(several.tools.running) == 20, what="every tool running")
    await several.start("second")
    assert await several.owners() == {"first": len(runs)}
    several.nodes.reverse()
    await first.kill()
    with Stopwatch() as watch:
        several.tools.release.set()
        await several.ended(len(runs))
        assert watch.seconds < TAKEOVER_S + 1.5  # the work itself, and a busy machine, take a moment too
    assert set(several.executions().values()) == {1}
    assert len(several.gateway.ledger) == 2 * len(runs)


async def test_sigterm_hands_every_run_over_in_under_a_second_and_exits_0(several: Cluster) -> None:
    first = await several.start("first", linger_s=60, lease_ttl_s=15)
    ask = several.at(first)
    runs = [await ask.start(step("a", "slow"), step("b")) for _ in range(20)]
    await eventually(lambda: len(several.tools.running) == 20, what="every tool running")
    second = await several.start("second", lease_ttl_s=15)
    async with ask.watch(runs[0]) as watch:
        await watch.until("tool.status")
        first.signal(signal.SIGTERM)
        asked_at = time.time()
        with Stopwatch() as time_taken:
            left = [frame async for frame in _rest(watch)]
            assert left[-1] == 500, "the stream ends with a hint to come back soon"
            assert await first.gone() == 0
            assert time_taken.seconds < 3
    handed = first.heard("handed over")
    assert handed is not None
    assert handed["runs"] == len(runs)
    assert datetime.fromisoformat(handed["at"]).timestamp() - asked_at < 1 + time_taken.stalled
    several.nodes.remove(first)
    several.nodes.append(first)
    several.tools.release.set()
    await several.ended(len(runs))
    assert set(several.executions().values()) == {1}
    assert await several.metric(second, "runwarden_runs_ended_total", status="completed") == len(runs)


async def _rest(watch):  # type: ignore[no-untyped-def] # a tiny generator of retry hints
    while True:
        try:
            frame = await watch.frame()
        except (EOFError, ConnectionError):
            return
        if frame.retry is not None:
            yield frame.retry


async def is_ready(live: Stack) -> bool:
    return (await live.ask("GET", "/readyz")).status == 200


async def test_a_leaving_node_is_not_ready_before_it_lets_anything_go(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack(database, redis_url, redis_prefix, linger_s=60) as live:
        assert live.node is not None
        await live.start(step("a", "slow"))
        await eventually(lambda: live.tools.running, what="the tool running")
        await eventually(lambda: is_ready(live), what="being ready")
        with Gate(monkeypatch, runner_of(live)._ownership, "stop_taking") as gate:
            draining = asyncio.create_task(live.node.drain())
            await gate.reached.wait()
            told = await live.ask("GET", "/readyz")
            assert (told.status, told.body["status"]) == (503, "leaving")
            assert [row["owner"] for row in await live.sql("SELECT owner FROM workflow_runs")] != [None]
        await draining
        assert [row["owner"] for row in await live.sql("SELECT owner FROM workflow_runs")] == [None]


async def test_a_node_stopped_past_its_lease_commits_nothing_and_sends_nothing_when_it_wakes(several: Cluster) -> None:
    first = await several.start("first", linger_s=60)
    ask = several.at(first)
    runs = [await ask.start(step("a", "slow"), *(step(f"s{n}") for n in range(5))) for _ in range(10)]
    await eventually(lambda: len(several.tools.running) == 10, what="every tool running")
    first.signal(signal.SIGSTOP)
    second = await several.start("second")
    several.tools.release.set()
    ask = several.at(second)
    several.nodes.reverse()
    await several.ended(len(runs))

    async def at_rest() -> bool:
        return not await several.owners()

    await eventually(at_rest, what="every run let go")
    before = len(several.gateway.ledger)
    # Not the log lines: what waited in the stopped node's socket is heard late, and kept by whoever owns the run.
    moves = "SELECT run_id, seq, event_type FROM workflow_run_events WHERE event_type <> 'tool.log' ORDER BY 1, 2"
    moved = await ask.sql(moves)
    first.signal(signal.SIGCONT)
    await eventually(lambda: any(first.heard(word) for word in LOST), what="the woken node knowing")
    assert await ask.sql(moves) == moved
    assert len(several.gateway.ledger) == before
    assert set(several.executions().values()) == {1}
    lost = await several.metric(first, "runwarden_leases_lost_total")
    fenced = await several.metric(first, "runwarden_fenced_total")
    assert lost + fenced > 0


async def test_killing_nodes_in_turn_runs_no_tool_twice(several: Cluster) -> None:
    nodes = [await several.start(f"node-{n}") for n in range(3)]
    ask = several.at(nodes[2])
    runs = [await ask.start(*(step(f"s{n}") for n in range(8))) for _ in range(30)]
    await several.ended(2)
    await nodes[0].kill()
    await several.ended(6)
    nodes[1].signal(signal.SIGTERM)
    await nodes[1].gone()
    several.nodes.reverse()

    async def quiet() -> bool:
        return (await several.statuses())["running"] == 0

    # What was intended by the killed node and never acknowledged is given up after 10 s, stopped after 5 more.
    await eventually(quiet, within_s=60, what="every run at rest")
    assert set(several.executions().values()) == {1}
    rows = await ask.sql("SELECT status, paused_reason, current_step_index FROM workflow_runs")
    assert {(row["status"], row["paused_reason"]) for row in rows} <= {
        ("completed", None),
        ("paused", "outcome_unknown"),
    }
    assert len(rows) == len(runs)
