"""Staying awake: only for one run alone that takes quick steps, only for a moment, and only where it pays."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from daemon.machine.commands import Epoch
from daemon.runtime import awake as room
from daemon.runtime.actor import Actor
from daemon.runtime.awake import AFTER_S, IN_VAIN, QUICK_S, REST_S, Awake, pays
from tests.machine.scenario import Story
from tests.runtime.harness import Rig, count, step

LONGEST_S = 0.001


class Scene:
    """A clock that only ``takes`` moves, and commits of runs."""

    def __init__(self, longest_s: float = LONGEST_S) -> None:
        self.now = 100.0
        self.awake = Awake(lambda: self.now, longest_s=longest_s)

    async def takes(self, seconds: float) -> bool:
        """So much later: whether the loop is still kept awake."""
        self.now += seconds
        for _ in range(3):
            await asyncio.sleep(0)
        return self.awake.polls

    async def commit(self, alone: Actor | None, *, took_s: float = 0.0004, since_s: float = 0.0004) -> bool:
        """One commit, ``since_s`` after the one before; whether it was waited for awake."""
        await self.takes(since_s)
        self.awake.begun(alone)
        polled = await self.takes(0)
        await self.takes(took_s)
        self.awake.over()
        return polled


@pytest.fixture
def scene() -> Scene:
    return Scene()


def a_run() -> Actor:
    return Actor(Story().run, Epoch(1), "me", 0.0)


async def test_the_second_of_two_quick_commits_of_one_run_is_waited_for_awake(scene: Scene) -> None:
    run = a_run()
    assert [await scene.commit(run) for _ in range(3)] == [False, True, True]


async def test_it_stays_awake_a_moment_after_the_commit_and_no_longer(scene: Scene) -> None:
    run = a_run()
    for _ in range(2):
        await scene.commit(run)
    assert await scene.takes(AFTER_S * 0.9)
    assert not await scene.takes(AFTER_S * 0.2)


async def test_what_may_wait_is_done_at_once_unless_it_polls(scene: Scene) -> None:
    done: list[str] = []
    await scene.commit(a_run())
    assert not scene.awake.polls
    scene.awake.later(partial(done.append, "it"))
    assert done == ["it"]


@pytest.mark.parametrize("of_one", [True, False])
async def test_what_may_wait_is_done_in_order_once_the_next_commit_has_left(scene: Scene, of_one: bool) -> None:
    run, done = a_run(), list[str]()
    for _ in range(2):
        await scene.commit(run)
    for name in ("first", "second"):
        scene.awake.later(partial(done.append, name))
    assert await scene.takes(AFTER_S * 0.5)
    scene.awake.begun(run if of_one else None)
    assert done == [], "the commit's bytes leave in this turn of the loop"
    await scene.takes(0)
    assert done == ["first", "second"]
    scene.awake.over()
    await scene.takes(1)
    assert done == ["first", "second"], "once"


async def test_what_may_wait_does_not_wait_for_a_commit_that_does_not_come(scene: Scene) -> None:
    run, done = a_run(), list[str]()
    for _ in range(2):
        await scene.commit(run)
    scene.awake.later(partial(done.append, "it"))
    assert not await scene.takes(AFTER_S * 1.1)
    assert done == ["it"]


async def test_what_may_wait_waits_no_longer_than_a_commit_is_waited_for(scene: Scene) -> None:
    run, done = a_run(), list[str]()
    for _ in range(2):
        await scene.commit(run)
    scene.awake.begun(run)
    await scene.takes(0)
    scene.awake.later(partial(done.append, "it"))
    assert await scene.takes(LONGEST_S * 0.9)
    assert done == []
    assert not await scene.takes(LONGEST_S * 0.2)
    assert done == ["it"]


async def test_the_time_it_is_awake_is_counted_with_each_commit(scene: Scene) -> None:
    run, before = a_run(), count("runwarden_busy_poll_seconds_total")
    for _ in range(4):
        await scene.commit(run, took_s=0.0004, since_s=0.0003)
    assert scene.awake.polls
    # From the second commit's beginning to the fourth's end.
    assert count("runwarden_busy_poll_seconds_total") - before == pytest.approx(3 * 0.0004 + 2 * 0.0003)


async def test_a_commit_is_waited_for_awake_only_so_long(scene: Scene) -> None:
    run = a_run()
    await scene.commit(run)
    scene.awake.begun(run)
    assert await scene.takes(LONGEST_S * 0.9)
    assert not await scene.takes(LONGEST_S * 0.2)
    scene.awake.over()
    assert not await scene.takes(0), "what came late is not followed by more waiting"


async def test_where_several_runs_move_nobody_waits_awake(scene: Scene) -> None:
    one, other = a_run(), a_run()
    assert [await scene.commit(run) for run in (one, other, one, other, None, None)] == [False] * 6


async def test_for_tools_that_take_their_time_nobody_waits_awake(scene: Scene) -> None:
    run = a_run()
    assert [await scene.commit(run, since_s=QUICK_S * 1.1) for _ in range(3)] == [False] * 3


async def test_where_it_was_in_vain_it_rests(scene: Scene) -> None:
    run = a_run()
    late = [await scene.commit(run, took_s=LONGEST_S * 1.1) for _ in range(1 + IN_VAIN + 2)]
    assert late == [False, *[True] * IN_VAIN, False, False]
    scene.now += REST_S
    assert [await scene.commit(run) for _ in range(2)] == [False, True]


async def test_a_commit_in_time_makes_good_for_late_ones(scene: Scene) -> None:
    run = a_run()
    await scene.commit(run)
    for _ in range(2):
        for _ in range(IN_VAIN - 1):
            assert await scene.commit(run, took_s=LONGEST_S * 1.1)
        assert await scene.commit(run)


async def test_none_is_none() -> None:
    scene, run = Scene(longest_s=0.0), a_run()
    assert [await scene.commit(run) for _ in range(3)] == [False] * 3


def test_with_one_cpu_it_never_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert pays(LONGEST_S) == 0
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert pays(LONGEST_S) == LONGEST_S


@pytest.mark.parametrize(("busy_poll_ms", "polls"), [(10, True), (0, False)])
async def test_a_node_waits_awake_where_it_is_told_to(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, busy_poll_ms: float, polls: bool
) -> None:
    monkeypatch.setattr(room, "QUICK_S", 5.0)
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    await rig.bind()
    node = await rig.start(busy_poll_ms=busy_poll_ms)
    before = count("runwarden_busy_poll_seconds_total")
    run_id = await rig.create(*(step(f"s{number}") for number in range(5)))
    await rig.until(run_id, "completed")
    await node.crash()
    assert (count("runwarden_busy_poll_seconds_total") > before) == polls
