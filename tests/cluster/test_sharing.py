"""Several nodes share what comes: by room, by role, and passively."""

from __future__ import annotations

import signal

from tests.api.harness import step
from tests.cluster.harness import Cluster
from tests.patience import eventually, let_pass
from tests.stopwatch import Stopwatch

LEASE_S = 15
"""Longer than the machine may stall: nothing here is about nodes that are gone."""


async def test_of_three_idle_nodes_none_gets_more_than_half_of_300_runs(several: Cluster) -> None:
    nodes = [await several.start(f"n{n}", linger_s=60, lease_ttl_s=LEASE_S) for n in range(3)]
    ask = several.at(nodes[0])
    workflow = await ask.workflow(step("a", "slow"))
    for _ in range(300):
        await ask.post("/v1/workflow-runs", {"workflow_id": workflow})

    async def all_owned() -> bool:
        return sum((await several.owners()).values()) == 300

    await eventually(all_owned, what="every run owned")
    assert max((await several.owners()).values()) <= 150


async def test_a_node_takes_only_what_it_has_room_for(several: Cluster) -> None:
    node = await several.start("small", residents=5, linger_s=60, lease_ttl_s=LEASE_S)
    ask = several.at(node)
    runs = [await ask.start(step("a", "slow")) for _ in range(12)]
    await eventually(lambda: len(several.tools.running) == 5, what="five tools running")
    assert await several.metric(node, "runwarden_resident_runs") == 5
    await several.start("roomy", lease_ttl_s=LEASE_S)
    await eventually(lambda: len(several.tools.running) == len(runs), what="the others taken by the roomy node")


async def test_paused_runs_leave_no_key_and_an_approval_on_any_node_wakes_them(several: Cluster) -> None:
    first, second = [await several.start(name, lease_ttl_s=LEASE_S) for name in ("first", "second")]
    runs = [await several.at(first).start(step("a", approval_policy="manual")) for _ in range(10)]
    await several.ended(10, status="paused")

    async def passive() -> bool:
        return not await several.owners()

    await eventually(passive, what="every run passive")
    import redis

    with redis.Redis.from_url(several.redis_url) as look:
        left = [key for key in look.keys(f"{several.redis_prefix}:*") if b":lease:" in key or b":inbox:" in key]
    assert left == []
    for run in runs:
        with Stopwatch() as watch:
            answer = await several.at(second).decide(run, "approve", {"step_id": "a"})
            assert answer.status == 200
            assert watch.seconds < 2
    await several.ended(10)
    assert set(several.executions().values()) == {1}


async def test_the_sweep_never_marks_a_live_neighbours_quiet_run(several: Cluster) -> None:
    first = await several.start("first", linger_s=60, lease_ttl_s=LEASE_S)
    await several.start("second", lease_ttl_s=LEASE_S)
    ask = several.at(first)
    run = await ask.start(step("a", "slow"))
    await eventually(lambda: several.tools.running, what="the tool running")
    row = (await ask.sql("SELECT epoch, owner FROM workflow_runs"))[0]
    await let_pass(3.0)  # several sweeps go by
    assert (await ask.sql("SELECT epoch, owner FROM workflow_runs"))[0] == row
    several.tools.release.set()
    await ask.until(run, "completed")


async def test_the_ingest_moves_without_a_lost_result(several: Cluster) -> None:
    first = await several.start("first", lease_ttl_s=LEASE_S)
    await eventually(lambda: len(several.gateway._subscribers) == 1, what="the holder hearing")
    second = await several.start("second", lease_ttl_s=LEASE_S)
    await eventually(lambda: len(several.gateway._subscribers) == 2, what="the standby hearing")
    ask = several.at(second)
    with several.gateway.weather.during("lost_result"):
        pass
    runs = [
        await ask.start(*(step(f"s{n}", "streaming", arguments={"lines": 3, "pace_ms": 20}) for n in range(6)))
        for _ in range(10)
    ]
    await eventually(lambda: len(several.gateway.ledger) >= 20, what="work under way")
    first.signal(signal.SIGTERM)
    assert await first.gone() == 0
    several.nodes.reverse()
    await several.ended(len(runs))
    assert set(several.executions().values()) == {1}
    rows = await ask.sql("SELECT count(*) FROM workflow_run_attempts WHERE state <> 'done'")
    assert rows[0][0] == 0


async def test_a_front_serves_the_api_and_a_runner_only_health_and_metrics(several: Cluster) -> None:
    front = await several.start("front", "--role", "front", lease_ttl_s=LEASE_S)
    runner = await several.start("runner", "--role", "runner", lease_ttl_s=LEASE_S)
    ask = several.at(front)
    run = await ask.start(step("a"))
    async with ask.watch(run) as watch:
        await watch.until("run.completed")
    assert await several.metric(front, "runwarden_turns_total") == 0
    assert await several.metric(runner, "runwarden_turns_total") > 0
    assert (await several.at(runner).ask("GET", "/healthz")).status == 200

    async def ready() -> bool:
        return (await several.at(runner).ask("GET", "/readyz")).status == 200

    await eventually(ready, what="the runner being ready")
    assert (await several.at(runner).ask("GET", f"/v1/workflow-runs/{run}")).status == 404
    assert (await several.at(runner).ask("POST", "/v1/workflows", json={})).status == 404
