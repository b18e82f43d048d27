"""Redis forgets everything, or stands still: runs go on, and nothing is executed twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

from daemon.dev.embedded import EmbeddedValkey
from tests.patience import eventually
from tests.runtime.harness import Rig, step
from tests.runtime.harness import rig as opened_rig


async def test_runs_in_flight_outlive_a_flush(rig: Rig) -> None:
    await rig.start()
    runs = [await rig.create(step("a"), step("b", "gated"), step("c")) for _ in range(5)]
    await rig.executing(10)
    await rig.redis.redis.flushall()
    rig.tools.gate.set()
    for run_id in runs:
        await rig.until(run_id, "completed")
    rig.never_twice(15)


async def test_flush_after_flush_loses_no_run(rig: Rig) -> None:
    await rig.start(linger_s=0.05)
    runs = [await rig.create(*(step(f"s{number}") for number in range(6))) for _ in range(10)]
    for done in range(1, 5):  # in the midst of everything, several times
        await eventually(lambda done=done: len(rig.gateway.ledger) >= 12 * done)
        await rig.redis.redis.flushall()
    for run_id in runs:
        await rig.until(run_id, "completed")
    rig.never_twice(60)


async def test_a_passive_run_outlives_a_flush(rig: Rig) -> None:
    await rig.start(linger_s=0.05)
    waiting, paused = await rig.create(step("a", "gated"), step("b")), await rig.create(step("a", manual=True))
    for run_id in (waiting, paused):
        await rig.passive(run_id)
    await rig.redis.redis.flushall()
    rig.tools.gate.set()
    await rig.say(paused, "approve", step_id="a")
    for run_id in (waiting, paused):
        await rig.until(run_id, "completed")
    rig.never_twice(3)


async def test_a_result_whose_letter_was_flushed_is_inquired(rig: Rig) -> None:
    """The lease vanished, so letters may have too: its holder asks the Gateway what became of the call."""
    await rig.start(lease_ttl_s=0.6)
    run_id = await rig.create(step("a", "gated"))
    await rig.told(run_id, "tool.status")
    with rig.gateway.weather.during("lost_result"):
        rig.tools.gate.set()
        await eventually(lambda: rig.tools.running == 0)
        await rig.redis.redis.flushall()
        await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_passive_run_whose_letter_was_flushed_is_inquired_long_before_its_deadline(rig: Rig) -> None:
    """Nobody holds it, so nobody misses its lease: the sweep sees that Redis forgot, and wakes whoever waits."""
    await rig.start(linger_s=0.05)
    run_id = await rig.create(step("a", "gated"))
    await rig.passive(run_id)
    with rig.gateway.weather.during("lost_result"):
        rig.tools.gate.set()
        await eventually(lambda: rig.tools.running == 0)
        await rig.redis.redis.flushall()
        await rig.until(run_id, "completed")
    rig.never_twice(1)


async def test_a_letter_that_redis_lost_though_it_kept_the_lease_is_inquired_long_before_the_first_look(
    database: str, servers_dir: Path, redis_prefix: str
) -> None:
    """A replica that was behind, or a file not yet synced: no renewal tells, but another server answers."""
    with EmbeddedValkey(servers_dir / "kept") as kept:
        async with opened_rig(database, kept.url, redis_prefix) as rig:
            await rig.start(lease_ttl_s=20)
            run_id = await rig.create(step("a", "gated"))
            await rig.told(run_id, "tool.status")
            with rig.gateway.weather.during("lost_result"):
                rig.tools.gate.set()
                await eventually(lambda: rig.tools.running == 0)
                await asyncio.to_thread(kept.stop)
                await asyncio.to_thread(kept.start)
                await rig.until(run_id, "completed")
            assert await rig.redis.redis.exists(rig.keys.lease(run_id)), "it was never missed"
            rig.never_twice(1)


async def test_runs_wait_while_redis_stands_still_and_go_on_by_themselves(rig: Rig) -> None:
    node = await rig.start(lease_ttl_s=0.5)
    runs = [await rig.create(step("a"), step("b", "gated"), step("c")) for _ in range(3)]
    await rig.executing(6)
    await rig.redis.redis.execute_command("CLIENT", "PAUSE", 1_200, "ALL")  # longer than every lease
    rig.tools.gate.set()
    for run_id in runs:
        await rig.until(run_id, "completed")
    assert node.healthy
    rig.never_twice(9)
