"""What a node does not hear, hears too much of, or hears of runs that do not exist."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from redis.asyncio import Redis

from daemon.fabric.inbox import READ_LIMIT, Inbox, Post
from daemon.fabric.keys import Keys
from daemon.machine.commands import Mark, RunId
from daemon.runtime.residents import Residents
from daemon.store import pool
from daemon.store.journal import Lane
from tests.api.harness import stack, step
from tests.cluster.harness import Cluster, runner_of
from tests.patience import PATIENCE_S, eventually, let_pass


async def test_a_result_that_nobody_heard_is_found_by_runs_on_every_node(several: Cluster) -> None:
    first = await several.start("first", linger_s=60, lease_ttl_s=15)
    await eventually(lambda: len(several.gateway._subscribers) == 1, what="the holder hearing")
    await several.start("second", linger_s=60, lease_ttl_s=15)
    await eventually(lambda: len(several.gateway._subscribers) == 2, what="the standby hearing")
    await several.start("third", linger_s=60, lease_ttl_s=15)  # which hears nothing itself
    ask = several.at(first)
    runs = [await ask.start(step("a", "slow")) for _ in range(30)]
    await eventually(lambda: len(several.tools.running) == 30, what="every tool running")

    async def all_owned() -> bool:
        return sum((await several.owners()).values()) == 30

    await eventually(all_owned, what="every run owned")
    assert len(await several.owners()) == 3
    with several.gateway.weather.during("lost_result"):
        several.tools.release.set()
        await eventually(lambda: len(several.gateway.of("RESULT")) == 30, what="every RESULT lost")
    for request in list(several.gateway._subscribers.values()):
        assert request.transport is not None
        request.transport.close()
    await several.ended(len(runs), within_s=PATIENCE_S)
    assert set(several.executions().values()) == {1}


async def test_a_result_behind_more_letters_than_one_turn_reads_is_not_left_lying(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    async with stack(database, redis_url, redis_prefix, linger_s=60) as opened, Redis.from_url(redis_url) as redis:
        run = await opened.start(step("a", "slow"))
        await eventually(lambda: opened.tools.running, what="the tool running")
        await eventually(lambda: bool(opened.gateway.of("CHUNK")), what="its first line")
        await let_pass(0.3)
        inbox: Inbox = runner_of(opened)._hearing.ears["default"]._inbox
        chunk = b'{"type":"STRANGE","req_id":"x","payload":{}}'
        posts = [Post(RunId(UUID(run)), "s", chunk, Mark(1, number)) for number in range(3 * READ_LIMIT)]
        await inbox.append(posts)

        async def empty() -> bool:
            return await redis.xlen(Keys(redis_prefix).inbox(UUID(run))) == 0

        await eventually(empty, what="every letter read")


async def test_letters_for_runs_that_do_not_exist_do_not_stay_for_ever(
    database: str, redis_url: str, redis_prefix: str
) -> None:
    async with stack(database, redis_url, redis_prefix) as opened, Redis.from_url(redis_url) as redis:
        stranger = RunId(UUID(int=7))
        inbox: Inbox = runner_of(opened)._hearing.ears["default"]._inbox
        await inbox.append([Post(stranger, "h", b"{}", Mark(1, 1))])
        assert 0 < await redis.ttl(Keys(redis_prefix).inbox(stranger)) <= 7 * 86400


async def test_the_alarms_of_a_run_that_talks_do_not_pile_up(database: str, redis_url: str, redis_prefix: str) -> None:
    async with stack(database, redis_url, redis_prefix, log_hold_s=0) as opened:
        await opened.start(step("a", "streaming", arguments={"lines": 200, "pace_ms": 10}, timeout_ms=600_000))
        await eventually(lambda: len(opened.gateway.of("CHUNK")) == 200, what="every line")
        residents: Residents = runner_of(opened)._host._residents
        far = asyncio.get_running_loop().time() + 60
        assert sum(1 for at, _ in residents._alarms if at > far) <= 1


async def test_a_lane_does_not_wait_for_ever_for_an_answer(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "COMMAND_TIMEOUT_S", 0.3)
    lane = Lane(database)
    connection = await lane._connected()
    began = asyncio.get_running_loop().time()
    with pytest.raises(TimeoutError):  # to the lane this is one of GONE: it reads where the runs stand
        await connection.fetch("SELECT pg_sleep(20)")
    assert asyncio.get_running_loop().time() - began < 10
    lane._drop()
