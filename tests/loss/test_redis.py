"""Redis is lost in every way: a node in the midst of work loses no command and no event, and repeats no call.

A Valkey of the test's own is killed, left away and started again empty; watchers follow as browsers do.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest

from daemon.dev.embedded import EmbeddedValkey
from daemon.fabric.client import open_client
from daemon.fabric.keys import Keys
from tests.api.harness import Stack, stack, step
from tests.e2e.follower import Follower
from tests.patience import eventually, let_pass

OUTAGE_S = 30.0
LATE_S = 40.0


@pytest.fixture
def own_valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
async def live(database: str, own_valkey: EmbeddedValkey, redis_prefix: str) -> AsyncIterator[Stack]:
    async with stack(database, own_valkey.url, redis_prefix, verdict_wait_s=0.2) as opened:
        yield opened


class Work:
    """Runs of every kind, each watched: flowing, in the midst of a tool, waiting for a person, and over."""

    def __init__(self, live: Stack) -> None:
        self.live = live
        self.flowing: list[str] = []
        self.in_flight: list[str] = []
        self.paused: list[str] = []
        self.followers: dict[str, Follower] = {}

    async def begin(self, many: int = 5) -> None:
        ask = self.live
        self.in_flight = [await ask.start(step("a"), step("b", "slow"), step("c")) for _ in range(many)]
        self.paused = [await ask.start(step("a", approval_policy="manual"), step("b")) for _ in range(many)]
        for run_id in self.paused:
            await ask.until(run_id, "paused")
        await eventually(lambda: len(ask.tools.running) == many, what="every tool running")
        self.flowing = [await ask.start(*(step(f"s{n}") for n in range(8))) for _ in range(many)]
        self.followers = {run_id: Follower(ask, run_id) for run_id in self.everything}

    @property
    def everything(self) -> list[str]:
        return [*self.flowing, *self.in_flight, *self.paused]

    async def approve(self) -> list[str]:
        """Accepted, though nobody can be rung: the URLs of the commands that are not decided yet."""
        answers = [await self.live.decide(run_id, "approve", {"step_id": "a"}) for run_id in self.paused]
        assert {answer.status for answer in answers} <= {200, 202}
        return [answer.headers["Location"] for answer in answers if answer.status == 202]

    async def end(self, accepted: Sequence[str] = (), *, more: int = 0) -> None:
        """Everything has completed by itself, nothing ran twice, every watcher saw every event once."""
        for run_id in self.everything:
            await self.live.until(run_id, "completed", within_s=2 * LATE_S)
        for url in accepted:
            assert (await self.live.ask("GET", url)).body["verdict"] == "applied"
        executions = Counter(one.req_id for one in self.live.gateway.ledger)
        assert set(executions.values()) == {1}
        assert len(executions) == 8 * len(self.flowing) + 3 * len(self.in_flight) + 2 * len(self.paused) + more
        for run_id, follower in self.followers.items():
            await follower.end()
            follower.assert_saw(await self.live.log(run_id))
            assert "run.completed" in follower.types


@pytest.fixture
async def work(live: Stack) -> Work:
    begun = Work(live)
    await begun.begin()
    return begun


async def test_flushes_of_keys_and_scripts_in_the_midst_of_everything(
    work: Work, live: Stack, own_valkey: EmbeddedValkey
) -> None:
    client = await open_client(own_valkey.url, patience_s=5)
    for so_far in (8, 16, 24):
        await eventually(lambda so_far=so_far: len(live.gateway.ledger) >= so_far + 2 * len(work.in_flight))
        await client.redis.script_flush()
        await client.redis.flushall()
    await client.close()
    accepted = await work.approve()
    live.tools.release.set()
    await work.end(accepted)


async def test_a_restart_without_persistence_while_results_come_in(
    work: Work, live: Stack, own_valkey: EmbeddedValkey
) -> None:
    """The RESULTs are published while no inbox can take them: they go from the ear to the run, or are asked for.

    Which of the two depends on how soon Redis is back (``tests/runtime/test_redis_loss`` shows each by itself).
    """
    await asyncio.to_thread(own_valkey.stop)
    accepted = await work.approve()
    live.tools.release.set()
    await eventually(lambda: not live.tools.running)
    await asyncio.to_thread(own_valkey.start)
    await work.end(accepted)


async def test_an_outage_of_thirty_seconds(work: Work, live: Stack, own_valkey: EmbeddedValkey) -> None:
    await asyncio.to_thread(own_valkey.stop)
    gone = time.monotonic()
    accepted = await work.approve()
    assert len(accepted) == len(work.paused), "nobody can decide them"

    async def told() -> bool:
        return bool((await live.ask("GET", "/readyz")).body["checks"]["redis"] != "ok")

    await eventually(told, what="the outage being told")
    live.tools.release.set()
    made = await live.start(step("a"))
    await let_pass(OUTAGE_S - (time.monotonic() - gone))
    assert (await live.run(made))["status"] == "running"
    await asyncio.to_thread(own_valkey.start)
    back = time.monotonic()
    await live.until(made, "completed")
    assert time.monotonic() - back < LATE_S
    await work.end(accepted, more=1)


async def test_the_keys_of_finished_runs_are_gone(
    work: Work, live: Stack, own_valkey: EmbeddedValkey, redis_prefix: str
) -> None:
    """What stays does not grow with the number of runs: the node's own keys, each named in ``fabric/keys``."""
    await work.approve()
    live.tools.release.set()
    await work.end()
    client = await open_client(own_valkey.url, patience_s=5)
    keys = Keys(redis_prefix)
    constant = (keys.ready, keys.generation, keys.doorbells, keys.root + "role:", keys.root + "beacon:")

    async def only_those() -> bool:
        left = [key.decode() async for key in client.redis.scan_iter(match="*")]
        return all(key.startswith(constant) for key in left) and len(left) < 15

    await eventually(only_those, what="nothing left but what every node has")
    assert await client.redis.xlen(keys.ready) == 0
    await client.close()
