"""Redis with a real Sentinel: its primary is killed, or demoted, in the midst of runs; they go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from daemon.errors import FabricUnavailable, SetupError
from daemon.fabric.client import Client, open_client, speaking
from daemon.fabric.primary import read_sentinel_url
from tests.api.harness import stack
from tests.loss.sentinels import Watch, watched
from tests.loss.test_redis import Work
from tests.patience import eventually
from tests.runtime.harness import Rig, rig, step
from tests.stopwatch import Stopwatch

FAILOVER_S = 10.0
"""The Sentinel's own second of patience, its election, and a busy machine."""


@pytest.fixture
def watch() -> Iterator[Watch]:
    with watched() as opened:
        yield opened


@pytest.fixture
async def over(watch: Watch, database: str, redis_prefix: str) -> AsyncIterator[Rig]:
    async with rig(database, watch.url, redis_prefix) as opened:
        yield opened


async def answers(client: Client) -> bool:
    try:
        with speaking():
            return bool(await client.redis.set("probe", b"1"))
    except FabricUnavailable:
        return False


async def test_when_the_primary_is_killed_every_run_goes_on_by_itself_and_no_command_is_lost(
    over: Rig, watch: Watch
) -> None:
    await over.start("n1", lease_ttl_s=1.0, linger_s=0.05)
    await over.start("n2", lease_ttl_s=1.0, linger_s=0.05)
    flowing = [await over.create(*(step(f"s{n}") for n in range(12))) for _ in range(20)]
    in_flight = [await over.create(step("a"), step("b", "gated"), step("c")) for _ in range(5)]
    paused = [await over.create(step("a", manual=True)) for _ in range(5)]
    for run_id in paused:
        await over.until(run_id, "paused")
    await over.executing(60)
    watch.kill("primary")
    with Stopwatch() as taken:
        for run_id in paused:  # accepted, though nobody can be rung
            await over.say(run_id, "approve", ring=False, step_id="a")
        over.tools.gate.set()
        await eventually(lambda: answers(over.redis), within_s=60, what="the new primary answering")
        assert taken.seconds < FAILOVER_S
    for run_id in (*flowing, *in_flight, *paused):
        await over.until(run_id, "completed", within_s=60)
    over.never_twice(12 * 20 + 3 * 5 + 5)
    assert watch.speak("replica").info("replication")["role"] == "master"


async def test_watchers_see_every_event_once_over_a_failover(watch: Watch, database: str, redis_prefix: str) -> None:
    async with stack(database, watch.url, redis_prefix) as live:
        work = Work(live)
        await work.begin()
        watch.kill("primary")
        accepted = await work.approve()
        live.tools.release.set()
        await work.end(accepted)


async def test_without_sentinels_too_a_connection_to_a_demoted_server_is_closed_not_used_again(redis_url: str) -> None:
    """Behind a name that moves (a proxy, a service address) only a new connection finds the new primary."""
    client = await open_client(redis_url, patience_s=10)
    connections = lambda: client.redis.client_id()  # noqa: E731 - asked twice below
    try:
        assert await answers(client)
        before = await connections()
        await client.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        assert not await answers(client)
        await client.redis.execute_command("REPLICAOF", "NO", "ONE")
        assert await answers(client)
        assert await connections() != before
    finally:
        await client.redis.execute_command("REPLICAOF", "NO", "ONE")
        await client.close()


async def test_where_no_sentinel_answers_the_start_is_refused_with_the_password_masked() -> None:
    with pytest.raises(SetupError, match="No master found for 'runs'") as refused:
        await open_client("redis+sentinel://someone:secret@127.0.0.1:1/runs", patience_s=0.1)
    assert "secret" not in str(refused.value)


def test_a_sentinel_url_says_everything() -> None:
    read = read_sentinel_url("rediss+sentinel://bob:p%40ss@a:1,b,[::1]:3/runs/4?sentinel_password=s")
    assert read.sentinels == (("a", 1), ("b", 26379), ("::1", 3))
    assert read.service == "runs"
    assert read.options == {"db": 4, "username": "bob", "password": "p@ss", "ssl": True}
    assert read.sentinel_options == {"password": "s", "ssl": True}


@pytest.mark.parametrize(
    "url", ["redis+sentinel://a:1", "redis+sentinel:///runs", "redis+sentinel://a/r/x", "redis+sentinel://a/r?x=1"]
)
async def test_a_sentinel_url_that_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="cannot be read"):
        await open_client(url, patience_s=0.1)
