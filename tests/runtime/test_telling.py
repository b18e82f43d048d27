"""Telling watchers: whole only where somebody listens, in order, and never in a run's way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from daemon.errors import FabricUnavailable
from daemon.fabric.bus import Publisher
from daemon.machine.commands import Epoch, RunId
from daemon.machine.record import Told
from daemon.runtime.actor import Actor
from daemon.runtime.ports import Later
from daemon.runtime.telling import MOST_WORDS, Telling
from tests.machine.scenario import Story, chunk
from tests.patience import eventually
from tests.runtime.harness import Rig, step


class Listeners:
    """A publisher whose words are heard by so many, and which may be slow or away."""

    def __init__(self, listeners: int) -> None:
        self.listeners = listeners
        self.heard: list[Told] = []
        self.together: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.away = False

    async def publish(self, said: Sequence[tuple[RunId, Told]]) -> list[int]:
        await self.open.wait()
        if self.away:
            raise FabricUnavailable("away")
        self.heard += [told for _, told in said]
        self.together.append(len(said))
        return [self.listeners] * len(said)


class Scene:
    """One run that talks, and what is told of it."""

    def __init__(self, publisher: Listeners, later: Later) -> None:
        self.publisher = publisher
        self.story = Story()
        self.actor = Actor(self.story.run, Epoch(1), "me", 0.0)
        self.telling = Telling(publisher, later)

    def says(self, text: str) -> None:
        self.story.hear(chunk(self.story.req, text))
        self.telling.tell(self.actor, self.story.transitions[-1])

    async def told(self, text: str) -> None:
        self.says(text)
        await self.telling.quiet()

    async def told_last(self) -> None:
        """What the story told last is said, and told."""
        self.telling.tell(self.actor, self.story.transitions[-1])
        async with asyncio.timeout(5):
            await self.telling.quiet()

    async def held_up(self) -> None:
        """A first word is on its way, and Redis takes its time."""
        self.publisher.open.clear()
        self.says("on its way\n")
        await asyncio.sleep(0)


@asynccontextmanager
async def scene(publisher: Listeners, later: Later = lambda what: what()) -> Any:
    opened = Scene(publisher, later)
    running = asyncio.create_task(opened.telling.run())
    try:
        yield opened
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_nobody_hears_is_only_mentioned_until_somebody_does() -> None:
    publisher = Listeners(0)
    async with scene(publisher) as on:
        await on.told("before anybody could be asked\n")
        await on.told("nobody there\n")
        publisher.listeners = 1
        await on.told("somebody has come\n")
        await on.told("and hears this\n")
    whole = [bool(told.frames) for told in publisher.heard]
    assert whole == [True, False, False, True]
    unheard = publisher.heard[1]
    assert unheard.first_seq == unheard.last_seq + 1, "a watcher that hears it reads the log"
    assert publisher.heard[3].first_seq == publisher.heard[2].last_seq + 1


async def test_what_is_said_while_redis_is_slow_goes_out_together_and_in_order() -> None:
    publisher = Listeners(1)
    async with scene(publisher) as on:
        await on.held_up()
        for text in ("two\n", "three\n", "four\n"):
            on.says(text)
        publisher.open.set()
        await on.telling.quiet()
    assert publisher.together == [1, 3]
    assert [told.first_seq for told in publisher.heard[1:]] == [told.last_seq + 1 for told in publisher.heard[:-1]]
    texts = zip((b"on its way", b"two", b"three", b"four"), publisher.heard, strict=True)
    assert all(text in told.frames for text, told in texts)


@pytest.mark.parametrize(
    ("waiting", "told_together"), [(MOST_WORDS, MOST_WORDS), (MOST_WORDS + 1, 1), (MOST_WORDS + 3, 3)]
)
async def test_what_piles_up_is_bounded(waiting: int, told_together: int) -> None:
    """Too many words become one that sends to the log; a watcher that heard the last before them misses nothing so."""
    publisher = Listeners(1)
    async with scene(publisher) as on:
        await on.held_up()
        for number in range(waiting):
            on.says(f"{number}\n")
        publisher.open.set()
        await on.telling.quiet()
    assert publisher.together == [1, told_together]
    assert publisher.heard[-1].last_seq == on.story.run.last_seq
    second = publisher.heard[1]
    assert (second.frames == b"") == (waiting > MOST_WORDS) == (second.first_seq > second.last_seq)


async def test_quiet_is_when_what_was_said_before_is_told_though_more_is_said_all_the_time() -> None:
    publisher = Listeners(1)
    async with scene(publisher) as on:
        await on.held_up()
        on.says("before\n")
        quiet = asyncio.create_task(on.telling.quiet())
        await asyncio.sleep(0)
        while not quiet.done():
            publisher.open.set()
            on.says("after\n")
            await asyncio.sleep(0)
            assert len(publisher.together) <= 3
    assert any(b"before" in told.frames for told in publisher.heard)


async def test_only_what_is_said_of_a_run_with_a_call_in_flight_may_wait_for_a_better_moment() -> None:
    publisher, put_off = Listeners(1), list[Any]()
    async with scene(publisher, put_off.append) as on:
        on.says("it runs\n")
        await asyncio.sleep(0)
        assert (len(put_off), publisher.heard) == (1, [])
        on.story.succeed()
        assert not on.story.run.in_flight
        await on.told_last()
    assert (len(put_off), len(publisher.heard)) == (1, 2)


async def test_what_was_put_off_and_told_meanwhile_is_not_told_as_nothing() -> None:
    """What waited for a better moment went out with what could not wait; when the moment comes nothing is left."""
    publisher, put_off = Listeners(1), list[Any]()
    async with scene(publisher, put_off.append) as on:
        on.says("it runs\n")
        on.story.succeed()
        await on.told_last()
        (moment,) = put_off
        moment()
        for _ in range(3):
            await asyncio.sleep(0)
        await on.told_last()
    assert publisher.together == [2, 1]


async def test_after_redis_was_away_it_goes_on() -> None:
    publisher = Listeners(1)
    async with scene(publisher) as on:
        publisher.away = True
        await on.told("lost\n")
        publisher.away = False
        await on.told("heard\n")
    (told,) = publisher.heard
    assert b"heard" in told.frames


async def test_a_run_does_not_wait_until_watchers_were_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis takes the words, and never says that it did: three steps are made all the same."""
    asked = 0

    async def never(self: Publisher, said: Sequence[tuple[RunId, Told]]) -> list[int]:
        nonlocal asked
        asked += 1
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(Publisher, "publish", never)
    await rig.bind()
    node = await rig.start()
    run_id = await rig.create(step("a"), step("b"), step("c"))
    await rig.until(run_id, "completed")
    assert await eventually(lambda: asked) == 1
    await node.crash()
    rig.never_twice(3)
