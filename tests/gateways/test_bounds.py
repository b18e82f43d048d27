"""An agent that takes nothing any more holds its share of the connections, and its waiting calls are surely unsent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from tests.api.harness import step
from tests.gateways.world import World
from tests.patience import eventually
from tests.stopwatch import Stopwatch

Open = Callable[..., AbstractAsyncContextManager[World]]
BOUNDS = {"gateway_connections": 4, "gateway_agent_calls": 2}


async def test_a_frozen_agent_starves_nobody_and_whoever_waits_for_it_is_told_that_nothing_was_sent(
    open_world: Open,
) -> None:
    async with open_world(**BOUNDS, ack_timeout_s=4.0, step_patience_s=5.0) as world:
        await world.move("agent-2", "a")
        world.gateways["a"].frozen = {"agent-1"}
        stuck = await asyncio.gather(*(world.live.start(step("one")) for _ in range(6)))
        await eventually(lambda: world.gateways["a"].hanging == 2, what="two calls hanging")
        fine = await asyncio.gather(*(world.live.start(step("one", agent="agent-2")) for _ in range(10)))
        for run_id in fine:
            await world.live.until(run_id, "completed")
        ends = [await world.live.until(run_id, "paused", within_s=30) for run_id in stuck]
        reasons = sorted(run["paused_reason"] for run in ends)
        assert reasons == ["outcome_unknown"] * 2 + ["step_failed"] * 4
        codes = {
            run["steps_state"]["one"]["attempts"][0]["error"]["code"]
            for run in ends
            if run["paused_reason"] == "step_failed"
        }
        assert codes == {"agent_busy"}
        assert world.gateways["a"].hanging == 2
        assert [tool for name, tool in world.ran()] == ["ok"] * 10


async def test_a_call_that_waits_for_a_busy_agent_goes_out_once_there_is_a_place(open_world: Open) -> None:
    async with open_world(gateway_agent_calls=1) as world:
        runs = await asyncio.gather(*(world.live.start(step("one"), step("two")) for _ in range(8)))
        for run_id in runs:
            await world.live.until(run_id, "completed")
        assert len(world.ran()) == 16
        world.never_twice()


async def test_a_drain_hands_the_calls_that_wait_for_a_busy_agent_over_at_once(open_world: Open) -> None:
    async with open_world(**BOUNDS, drain_s=0.5) as world:
        world.gateways["a"].frozen = {"agent-1"}
        runs = await asyncio.gather(*(world.live.start(step("one")) for _ in range(5)))
        await eventually(lambda: world.gateways["a"].hanging == 2, what="two calls hanging")
        assert world.live.node is not None
        with Stopwatch() as watch:
            await world.live.node.drain()
            assert watch.seconds < 4
        rows = await world.live.sql(
            "SELECT state, count(*) AS n FROM workflow_run_attempts WHERE run_id::text = ANY($1) GROUP BY state", runs
        )
        assert {row["state"]: row["n"] for row in rows} == {"unsent": 3, "intent": 2}
