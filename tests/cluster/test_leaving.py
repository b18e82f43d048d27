"""A run that leaves, or is handed over, while something happens to it: it is woken all the same, and by somebody who
stays. Each test holds one exchange with a server open, at the moment where the next thing may come between.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis

from daemon.fabric.keys import Keys
from daemon.fabric.ready import GROUP
from tests.api.harness import Stack, Tools, stack, step
from tests.cluster.harness import Gate, runner_of
from tests.patience import eventually, let_pass
from tests.stopwatch import Stopwatch


async def test_a_result_between_the_lease_and_the_owner_of_a_leaving_run_wakes_it(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack(database, redis_url, redis_prefix) as opened, Redis.from_url(redis_url) as redis:
        with Gate(monkeypatch, runner_of(opened)._ownership._claims, "release") as gate:
            run = await opened.start(step("a", "slow"))
            await gate.reached.wait()  # the lease is gone, the owner still stands
            opened.tools.release.set()
            await eventually(lambda: opened.gateway.of("RESULT"), what="the RESULT")

            async def dealt_with() -> bool:
                return await redis.xlen(Keys(redis_prefix).ready) == 0

            await eventually(dealt_with, what="the offer taken")
            gate.open.set()
            await opened.until(run, "completed")


async def test_a_lease_that_was_given_back_is_not_taken_again_by_its_renewal(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        stack(database, redis_url, redis_prefix, lease_ttl_s=0.6, sweep_period_s=30) as opened,
        Redis.from_url(redis_url) as redis,
    ):
        with Gate(monkeypatch, runner_of(opened)._ownership._claims, "release") as gate:
            run = await opened.start(step("a", "slow"))
            await gate.reached.wait()
            await let_pass(0.5)  # two renewals go by; there is no sign of a renewal that does nothing
            assert not await redis.exists(Keys(redis_prefix).lease(UUID(run)))
            gate.open.set()

            async def passive() -> bool:
                return (await opened.sql("SELECT owner FROM workflow_runs"))[0]["owner"] is None

            await eventually(passive, what="the run passive")
            opened.tools.release.set()
            await opened.until(run, "completed")


async def test_a_draining_node_does_not_take_its_own_runs_back(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    async with (
        stack(database, redis_url, redis_prefix, linger_s=60) as opened,
        Redis.from_url(redis_url) as redis,
    ):
        for _ in range(5):
            await opened.start(step("a", "slow"))
        await eventually(lambda: len(opened.tools.running) == 5, what="five tools running")
        await runner_of(opened).drain()
        await let_pass(1.2)  # longer than a reader of the ready stream blocks
        keys = Keys(redis_prefix)
        assert [row["owner"] for row in await opened.sql("SELECT owner FROM workflow_runs")] == [None] * 5
        assert await redis.xlen(keys.ready) == 5
        assert (await redis.xpending(keys.ready, GROUP))["pending"] == 0
        opened.tools.release.set()


async def test_a_call_intended_just_before_a_drain_is_handed_over_as_unsent(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack(database, redis_url, redis_prefix, linger_s=60) as opened:
        runner = runner_of(opened)
        lane = runner._host._lanes[0][0]
        client = runner._dispatch._gateways.clients["default"]
        real = client.invoke

        async def waits_for_a_connection(*given: Any, **named: Any) -> None:
            await let_pass(0.1)
            await real(*given, **named)

        monkeypatch.setattr(client, "invoke", waits_for_a_connection)
        with Gate(monkeypatch, lane, "commit") as gate:
            await opened.start(step("a"))
            await gate.reached.wait()  # the intent is on its way to Postgres
            draining = asyncio.create_task(runner.drain())
            await let_pass(0.05)
            gate.open.set()
            await draining
            attempts = await opened.sql("SELECT state FROM workflow_run_attempts")
            assert [row["state"] for row in attempts] == ["unsent"]
            assert not opened.gateway.ledger


async def test_a_drain_does_not_wait_for_a_node_that_is_never_quiet(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    async with stack(database, redis_url, redis_prefix, linger_s=60, log_hold_s=0) as opened:
        workflow = await opened.workflow(step("a", "streaming", arguments={"lines": 1000, "pace_ms": 5}))
        for _ in range(40):
            await opened.post("/v1/workflow-runs", {"workflow_id": workflow})
        await eventually(lambda: len(opened.tools.running) == 40, what="forty tools talking")
        with Stopwatch() as watch:
            await runner_of(opened).drain()
            assert watch.seconds < 2


async def test_a_drain_does_not_wait_for_questions_to_a_gateway_that_is_away(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack(database, redis_url, redis_prefix, linger_s=60, drain_s=5) as opened:
        runner = runner_of(opened)
        with Gate(monkeypatch, runner._dispatch._gateways.clients["default"], "result") as gate:
            await opened.start(step("a", "slow"))
            await eventually(lambda: opened.tools.running, what="the tool running")
            runner.missed()
            await gate.reached.wait()
            with Stopwatch() as watch:
                await runner.drain()
                assert watch.seconds < 2
            opened.tools.release.set()


async def test_a_call_that_its_agent_leaves_open_keeps_no_other_run_from_being_handed_over(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    async with stack(database, redis_url, redis_prefix, linger_s=60, drain_s=30) as opened:
        await opened.gateway.connect(Tools("stuck"))
        for _ in range(5):
            await opened.start(step("a", "slow"))
        await eventually(lambda: len(opened.tools.running) == 5, what="five tools running")
        with opened.gateway.weather.during("hanging_invoke@stuck"):
            held = await opened.start(step("a", agent="stuck"))
            await eventually(lambda: runner_of(opened)._dispatch._posts == 1, what="the POST being open")

            async def others_gone() -> bool:
                return await owned(opened) == [UUID(held)]

            with Stopwatch() as watch:
                draining = asyncio.create_task(runner_of(opened).drain())
                await eventually(others_gone, within_s=20, what="the five runs handed over")
                assert watch.seconds < 1
            assert not draining.done()
        await draining
        assert await owned(opened) == []
        assert len(opened.gateway.ledger) == 6, "the call was not cut off"
        opened.tools.release.set()


async def test_a_drain_ends_though_postgres_does_not_answer(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.runtime.runner.QUIET_S", 1.0)
    async with stack(database, redis_url, redis_prefix, linger_s=60) as opened:
        await opened.start(step("a", "slow"))
        await eventually(lambda: opened.tools.running, what="the tool running")
        blocking = await asyncpg.connect(database)
        try:
            async with blocking.transaction():
                await blocking.execute("LOCK TABLE workflow_runs IN ACCESS EXCLUSIVE MODE")
                with Stopwatch() as watch:
                    await runner_of(opened).drain()
                    assert watch.seconds < 10
        finally:
            await blocking.close()
        opened.tools.release.set()


async def owned(opened: Stack) -> list[UUID]:
    return [row["id"] for row in await opened.sql("SELECT id FROM workflow_runs WHERE owner IS NOT NULL")]
