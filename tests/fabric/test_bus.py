"""Conformance: what was committed is told to whoever watches, and each subscription is confirmed: nobody has a gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from daemon.machine.commands import RunId
from daemon.machine.record import Told
from tests.fabric.conftest import OverRedis, new_run
from tests.patience import eventually

SOMETHING = Told(3, 5, False, b'id: 3\nevent: x\ndata: {"a":"\n"}\n\n')


class Ear:
    """A bus that runs, and everything it heard."""

    def __init__(self, fabric: OverRedis, node: str = "n1") -> None:
        self.fabric = fabric
        self.bus = fabric.bus(node)
        self.heard: list[tuple[UUID, Told | None]] = []
        self.running = asyncio.create_task(self.bus.run(lambda run_id, told: self.heard.append((run_id, told))))

    async def confirmed(self, *runs: RunId) -> None:
        """Wait until each of these was confirmed; forgets what was heard so far."""
        await eventually(lambda: {run_id for run_id, told in self.heard if told is None} >= set(runs))
        self.heard.clear()

    async def hears(self, *expected: tuple[UUID, Told | None]) -> None:
        await eventually(lambda: len(self.heard) >= len(expected))
        assert self.heard == list(expected)

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


@pytest.fixture
async def ear(fabric: OverRedis) -> AsyncIterator[Ear]:
    opened = Ear(fabric)
    yield opened
    await opened.close()


async def tell(fabric: OverRedis, *runs: RunId, told: Told = SOMETHING) -> None:
    await fabric.publisher().publish([(run_id, told) for run_id in runs])


async def test_a_watch_is_confirmed_and_then_everything_is_heard(fabric: OverRedis, ear: Ear) -> None:
    run_id = new_run()
    await ear.bus.watch([run_id])
    await ear.hears((run_id, None))
    last = Told(6, 6, True, b"")
    await tell(fabric, run_id)
    await tell(fabric, run_id, told=last)
    await ear.hears((run_id, None), (run_id, SOMETHING), (run_id, last))


async def test_what_is_told_after_the_confirmation_was_sent_is_not_missed(fabric: OverRedis, ear: Ear) -> None:
    """Published without waiting: whatever comes before the None is in the log already, what comes after is heard."""
    run_id = new_run()
    await ear.bus.watch([run_id])
    for number in range(50):
        await tell(fabric, run_id, told=Told(number, number, False, b""))
    await eventually(lambda: ear.heard and ear.heard[-1][1] == Told(49, 49, False, b""))
    first = next(index for index, (_, told) in enumerate(ear.heard) if told is None)
    numbers = [told.first_seq for _, told in ear.heard[first + 1 :] if told is not None]
    assert numbers == list(range(50 - len(numbers), 50))


async def test_only_what_is_watched_is_heard(fabric: OverRedis, ear: Ear) -> None:
    mine, others = new_run(), new_run()
    await ear.bus.watch([mine])
    await ear.confirmed(mine)
    await tell(fabric, others)
    await tell(fabric, mine)
    await ear.hears((mine, SOMETHING))


async def test_what_is_no_longer_watched_is_not_heard(fabric: OverRedis, ear: Ear) -> None:
    left, kept = new_run(), new_run()
    await ear.bus.watch([left, kept])
    await ear.confirmed(left, kept)
    await ear.bus.unwatch(left)
    await ear.bus.watch([sentinel := new_run()])
    await ear.confirmed(sentinel)
    await tell(fabric, left)
    await tell(fabric, kept)
    await ear.hears((kept, SOMETHING))
    await ear.bus.unwatch(new_run())


async def test_a_run_watched_again_is_confirmed_again(ear: Ear) -> None:
    run_id = new_run()
    await ear.bus.watch([run_id])
    await ear.confirmed(run_id)
    await ear.bus.watch([run_id])
    await ear.confirmed(run_id)


async def test_a_watch_before_the_bus_runs_is_confirmed_when_it_does(fabric: OverRedis) -> None:
    run_id = new_run()
    ear = Ear(fabric)
    await ear.bus.watch([run_id])
    try:
        await ear.confirmed(run_id)
    finally:
        await ear.close()


async def test_every_node_hears_and_the_publisher_learns_how_many_did(fabric: OverRedis, ear: Ear) -> None:
    other, run_id, unwatched = Ear(fabric, "n2"), new_run(), new_run()
    try:
        for one in (ear, other):
            await one.bus.watch([run_id])
            await one.confirmed(run_id)
        assert await fabric.publisher().publish([(run_id, SOMETHING), (unwatched, SOMETHING)]) == [2, 0]
        for one in (ear, other):
            await one.hears((run_id, SOMETHING))
    finally:
        await other.close()


async def test_told_survives_the_way(fabric: OverRedis, ear: Ear) -> None:
    run_id = new_run()
    await ear.bus.watch([run_id])
    await ear.confirmed(run_id)
    told = Told(1, 2, True, bytes(range(256)) * 100)
    await tell(fabric, run_id, told=told)
    await ear.hears((run_id, told))
