"""Conformance: offers of runs without an owner. Each reaches one node, and what a dead node took is offered again."""

from __future__ import annotations

import asyncio

import pytest

from daemon.fabric import ready as ready_room
from tests.fabric.conftest import NOW_MS, OverRedis, new_run
from tests.patience import eventually


async def test_an_offer_reaches_one_node_in_its_turn(fabric: OverRedis) -> None:
    first, second = fabric.ready("n1"), fabric.ready("n2")
    runs = [new_run() for _ in range(4)]
    assert await first.mark(runs) == 4
    await first.take(1, NOW_MS)  # makes the group, which hears of what was offered before it
    assert [run_id for _, run_id in await first.take(1, NOW_MS)] == runs[:1]
    assert [run_id for _, run_id in await second.take(10, NOW_MS)] == runs[1:]
    assert await first.take(10, NOW_MS) == []


async def test_a_take_waits_for_an_offer(fabric: OverRedis) -> None:
    ready, run_id = fabric.ready(), new_run()
    await ready.take(1, NOW_MS)
    taking = asyncio.create_task(ready.take(1, 10_000))
    await fabric.ready("n2").mark([run_id])
    assert [taken for _, taken in await taking] == [run_id]


async def test_an_offer_that_was_dealt_with_never_comes_back(fabric: OverRedis) -> None:
    ready, run_id = fabric.ready("n1"), new_run()
    await ready.mark([run_id])
    await ready.take(1, NOW_MS)
    ((entry, _),) = await ready.take(1, NOW_MS)
    await ready.done([entry])
    await ready.done([])
    assert await fabric.ready("n2").reclaim(0, 10) == []


async def test_what_a_dead_node_took_is_claimed_by_another(fabric: OverRedis) -> None:
    dead, alive, run_id = fabric.ready("n1"), fabric.ready("n2"), new_run()
    await dead.mark([run_id])
    await dead.take(1, NOW_MS)
    taken = await dead.take(1, NOW_MS)
    assert await alive.reclaim(60_000, 10) == [], "it may still be at it"
    assert await eventually(lambda: alive.reclaim(1, 10)) == taken
    await alive.done([taken[0][0]])
    assert await fabric.ready("n3").reclaim(0, 10) == []


async def test_what_was_taken_and_not_dealt_with_is_given_back_at_once(fabric: OverRedis) -> None:
    leaving, other, runs = fabric.ready("n1"), fabric.ready("n2"), [new_run() for _ in range(3)]
    assert await leaving.give_back() == 0
    await leaving.mark(runs)
    await leaving.take(1, NOW_MS)
    (dealt_with, *_) = await leaving.take(3, NOW_MS)
    await leaving.done([dealt_with[0]])
    assert await leaving.give_back() == 2
    assert [run_id for _, run_id in await other.take(10, NOW_MS)] == runs[1:]
    assert await leaving.give_back() == 0


async def test_offers_are_bounded_and_the_rest_waits_for_the_next_sweep(
    fabric: OverRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready_room, "BOUND", 3)
    ready, runs = fabric.ready(), [new_run() for _ in range(5)]
    assert await ready.mark(runs, if_room=True) == 3
    assert await ready.mark(runs[3:], if_room=True) == 0
    await ready.take(1, NOW_MS)
    offers = await ready.take(10, NOW_MS)
    assert [run_id for _, run_id in offers] == runs[:3]
    await ready.done([entry for entry, _ in offers])
    assert await ready.mark(runs[3:], if_room=True) == 2


async def test_after_a_flush_offers_are_made_and_taken_again(fabric: OverRedis) -> None:
    ready, run_id = fabric.ready(), new_run()
    await ready.take(1, NOW_MS)
    await fabric.flush()
    assert await ready.reclaim(0, 10) == []
    await fabric.flush()
    await ready.mark([run_id])
    assert await ready.take(1, NOW_MS) == []
    assert [taken for _, taken in await ready.take(1, NOW_MS)] == [run_id]


async def test_nodes_that_meet_at_an_empty_server_all_get_along(fabric: OverRedis) -> None:
    nodes = [fabric.ready(f"n{number}") for number in range(5)]
    assert await asyncio.gather(*(node.take(1, NOW_MS) for node in nodes)) == [[]] * 5
    runs = [new_run() for _ in range(5)]
    await nodes[0].mark(runs)
    offers = await asyncio.gather(*(node.take(1, 5_000) for node in nodes))
    assert {run_id for ((_, run_id),) in offers} == set(runs)


async def test_offers_that_were_deleted_while_taken_are_passed_over(fabric: OverRedis) -> None:
    """A node that came back to life may finish what another has claimed meanwhile."""
    slow, quick = fabric.ready("n1"), fabric.ready("n2")
    await slow.mark([new_run()])
    await slow.take(1, NOW_MS)
    ((entry, _),) = await slow.take(1, NOW_MS)
    await eventually(lambda: quick.reclaim(1, 10))
    await slow.done([entry])
    await quick.done([entry])
    assert await fabric.ready("n3").reclaim(0, 10) == []


async def test_what_wakes_a_run_now_is_never_held_back(fabric: OverRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_room, "BOUND", 1)
    ready, runs = fabric.ready(), [new_run() for _ in range(3)]
    await ready.take(1, NOW_MS)
    assert await ready.mark(runs) == 3
    assert [run for _, run in await ready.take(10, NOW_MS)] == runs
