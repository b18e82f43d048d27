"""A node that lost a run without noticing: another one had it, went on and let it go again, so that the lease is free.

What the other node leaves behind (a raised epoch, no owner, no lease) is written here by hand, at the worst moment.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from daemon.fabric.keys import Keys
from tests.api.harness import Stack, stack, step
from tests.cluster.harness import runner_of
from tests.patience import eventually, let_pass


async def another_had_it(opened: Stack, redis: Redis, prefix: str, run: str) -> None:
    await opened.sql("UPDATE workflow_runs SET epoch = epoch + 1, owner = NULL WHERE id = $1 RETURNING id", UUID(run))
    await redis.delete(Keys(prefix).lease(UUID(run)))


async def test_a_result_that_rings_a_stale_owner_wakes_the_run_all_the_same(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    async with (
        stack(database, redis_url, redis_prefix, linger_s=60, lease_ttl_s=0.6) as opened,
        Redis.from_url(redis_url) as redis,
    ):
        run = await opened.start(step("a", "slow"))
        await eventually(lambda: opened.tools.running, what="the tool running")

        async def settled() -> bool:
            return bool(await opened.sql("SELECT 1 FROM workflow_run_events WHERE event_type = 'tool.log'"))

        await eventually(settled, what="its log line")  # so that only the RESULT rings again
        await another_had_it(opened, redis, redis_prefix, run)
        await let_pass(0.5)  # renewals go by
        opened.tools.release.set()
        await opened.until(run, "completed")


async def test_a_stale_owner_sends_nothing_though_its_lease_looks_fresh(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        stack(database, redis_url, redis_prefix, linger_s=60, lease_ttl_s=0.6) as opened,
        Redis.from_url(redis_url) as redis,
    ):
        client = runner_of(opened)._dispatch._gateways.clients["default"]
        real, reached, free, sent = client.invoke, asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def waits_for_a_connection(*given: Any, **named: Any) -> None:
            reached.set()
            await free.wait()
            try:
                await real(*given, **named)
            finally:
                sent.set()

        monkeypatch.setattr(client, "invoke", waits_for_a_connection)
        run = await opened.start(step("a"))
        await reached.wait()
        await another_had_it(opened, redis, redis_prefix, run)
        await let_pass(0.5)  # renewals go by
        free.set()
        await sent.wait()
        assert not opened.gateway.ledger


async def test_two_claims_of_one_run_never_stand_in_one_batch(
    database: str, redis_url: str, redis_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        stack(database, redis_url, redis_prefix, linger_s=60, lease_ttl_s=0.6) as opened,
        Redis.from_url(redis_url) as redis,
    ):
        run = await opened.start(step("a", "slow"))
        await eventually(lambda: opened.tools.running, what="the tool running")
        row = (await opened.sql("SELECT last_seq FROM workflow_runs"))[0]

        async def settled() -> bool:
            return bool(await opened.sql("SELECT 1 FROM workflow_run_events WHERE event_type = 'tool.log'"))

        await eventually(settled, what="its log line")
        lane = runner_of(opened)._host._lanes[0][0]
        real, reached, free = lane.commit, asyncio.Event(), asyncio.Event()
        batches: list[list[Any]] = []

        async def slow(batch: Any) -> Any:
            batches.append([one.run_id for one in batch])
            reached.set()
            await free.wait()
            return await real(batch)

        monkeypatch.setattr(lane, "commit", slow)
        await opened.start(step("b", approval_policy="manual"))  # its commit keeps the lane
        await reached.wait()
        refused = asyncio.create_task(opened.decide(run, "resume"))  # queued behind it, under the first claim
        opened.tools.release.set()
        await eventually(lambda: opened.gateway.of("RESULT"), what="the RESULT")
        await eventually(lambda: not runner_of(opened)._host._lanes[0][1].empty(), what="a turn queued")
        await redis.set(Keys(redis_prefix).lease(UUID(run)), "another/x|99")
        await eventually(
            lambda: runner_of(opened)._ownership._residents.get(UUID(run)) is None,  # type: ignore[arg-type] # a RunId is one
            what="the first claim dropped",
        )
        await redis.delete(Keys(redis_prefix).lease(UUID(run)))
        await redis.xadd(Keys(redis_prefix).ready, {"r": UUID(run).hex})
        await eventually(lambda: runner_of(opened)._host._lanes[0][1].qsize() >= 2, what="the second claim's turn")
        free.set()
        await opened.until(run, "completed")
        await refused
        assert all(len(batch) == len(set(batch)) for batch in batches)
        assert row
