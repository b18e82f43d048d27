"""Clock and Residents alone: carried time never goes back; who is rung, who is busy, and the alarms."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
import uuid_utils.compat as uuid7
from msgspec.structs import replace

from daemon.machine.commands import Epoch, RunId, Urgency
from daemon.runtime.actor import Actor
from daemon.runtime.clock import Clock
from daemon.runtime.residents import Residents
from tests.machine.scenario import Story

HOLD_S = 0.5


@dataclass
class Hand:
    """A monotonic clock that stands where it is set."""

    at: float = 1_000.0

    def __call__(self) -> float:
        return self.at


def actor() -> Actor:
    run = replace(Story(started=False).run, id=RunId(uuid7.uuid7()))
    return Actor(run=run, epoch=Epoch(1), owner="n1/x", renewed_at=0.0)


@pytest.fixture
def hand() -> Hand:
    return Hand()


@pytest.fixture
def residents(hand: Hand) -> Residents:
    return Residents(hand, hold_s=HOLD_S)


def moved_in(residents: Residents, *, resting: bool = True) -> Actor:
    """A resident; ``resting`` means that its first turn is over and nothing rang since."""
    one = actor()
    residents.add(one)
    if resting:
        assert residents.take(10) == [one]
        one.rung = None
        residents.free(one)
    return one


async def rung(residents: Residents) -> bool:
    """Whether somebody may be looked at now."""
    waiting = asyncio.create_task(residents.wait())
    for _ in range(5):
        await asyncio.sleep(0)
    done = waiting.done()
    waiting.cancel()
    return done


# --- Clock -----------------------------------------------------------------------------------------------------------


def test_a_clock_that_was_never_told_the_time_does_not_guess(hand: Hand) -> None:
    with pytest.raises(RuntimeError):
        Clock(hand).now()


def test_a_clock_carries_postgres_time_on(hand: Hand) -> None:
    clock = Clock(hand)
    clock.observe(5_000_000)
    hand.at += 1.5
    assert clock.now() == 5_001_500
    assert clock.at(5_000_500) == pytest.approx(hand.at - 1.0, abs=0.002)
    assert clock.at(5_002_500) == pytest.approx(hand.at + 1.0, abs=0.002)


def test_an_alarm_at_a_postgres_time_never_rings_before_it(hand: Hand) -> None:
    """Whoever is woken too early looks in vain, and again at once."""
    clock = Clock(hand)
    clock.observe(1_732_640_123_457)
    for when in range(1_732_640_123_500, 1_732_640_124_500):
        hand.at = clock.at(when)
        assert clock.now() >= when


def test_a_clock_is_set_forward_and_never_back(hand: Hand) -> None:
    clock = Clock(hand)
    clock.observe(5_000_000)
    clock.observe(4_000_000)
    assert clock.now() == 5_000_000
    clock.observe(6_000_000)
    assert clock.now() == 6_000_000
    hand.at += 1
    clock.observe(6_000_900)  # the answer was on its way for 0.1 s
    assert clock.now() == 6_001_000


# --- Residents -------------------------------------------------------------------------------------------------------


async def test_who_moves_in_is_looked_at(residents: Residents) -> None:
    one = moved_in(residents, resting=False)
    assert (len(residents), residents.get(one.id), list(residents)) == (1, one, [one])
    assert await rung(residents)
    assert residents.take(10) == [one]
    assert one.busy


async def test_a_run_has_never_two_turns_at_once(residents: Residents) -> None:
    one = moved_in(residents, resting=False)
    assert residents.take(10) == [one]
    residents.ring(one.id, "h")
    assert not await rung(residents)
    assert residents.take(10) == []
    residents.free(one)
    assert residents.take(10) == [one]


async def test_who_rests_is_not_looked_at_until_rung(residents: Residents) -> None:
    one = moved_in(residents)
    assert not await rung(residents)
    assert residents.ring(one.id, "h")
    assert await rung(residents)
    assert residents.take(10) == [one]


async def test_a_stranger_cannot_be_rung(residents: Residents) -> None:
    one = actor()
    assert not residents.ring(one.id, "c")
    residents.add(one)
    residents.remove(one)
    assert not residents.ring(one.id, "c")
    assert residents.take(10) == []
    assert len(residents) == 0


async def test_a_soft_ring_waits_for_company(residents: Residents, hand: Hand) -> None:
    one = moved_in(residents)
    residents.ring(one.id, "s")
    assert not await rung(residents)
    hand.at += HOLD_S - 0.01
    residents.ring(one.id, "s")
    assert not await rung(residents)
    hand.at += 0.02
    assert await rung(residents), "the second soft ring must not put the first one off"
    assert residents.take(10) == [one]


async def test_a_hard_ring_does_not_wait(residents: Residents) -> None:
    one = moved_in(residents)
    residents.ring(one.id, "s")
    residents.ring(one.id, "h")
    assert residents.take(10) == [one]


@pytest.mark.parametrize(
    ("rings", "kept"), [("s", "s"), ("sh", "h"), ("hs", "h"), ("ch", "c"), ("hsc", "c"), ("ss", "s")]
)
async def test_the_most_urgent_ring_is_kept(residents: Residents, rings: str, kept: Urgency) -> None:
    one = moved_in(residents)
    for urgency in rings:
        residents.ring(one.id, urgency)  # type: ignore[arg-type] # they are
    assert one.rung == kept


async def test_a_soft_ring_during_a_turn_waits_its_time_after_it(residents: Residents, hand: Hand) -> None:
    one = moved_in(residents, resting=False)
    residents.take(10)
    one.rung = None
    residents.ring(one.id, "s")
    residents.free(one)
    assert not await rung(residents)
    hand.at += HOLD_S
    assert await rung(residents)


async def test_an_alarm_rings_at_its_time_and_the_earliest_counts(residents: Residents, hand: Hand) -> None:
    one = moved_in(residents)
    residents.alarm(one, hand.at + 9)
    residents.alarm(one, hand.at + 5)
    residents.alarm(one, hand.at + 7)
    hand.at += 4.9
    assert not await rung(residents)
    hand.at += 0.2
    assert await rung(residents)
    assert residents.take(10) == [one]
    one.rung = None
    residents.free(one)
    hand.at += 100
    assert not await rung(residents), "the later alarms were for the same run, which has been looked at"


async def test_an_alarm_of_who_moved_out_rings_for_nobody(residents: Residents, hand: Hand) -> None:
    one, other = moved_in(residents), moved_in(residents)
    residents.alarm(one, hand.at + 1)
    residents.alarm(other, hand.at + 2)
    residents.remove(one)
    hand.at += 3
    assert await rung(residents)
    assert residents.take(10) == [other]


async def test_waiting_ends_by_itself_when_an_alarm_is_due(residents: Residents) -> None:
    """With the real clock: the wait is for the alarm, not for a bell."""
    loop = asyncio.get_running_loop()
    real = Residents(loop.time, hold_s=HOLD_S)
    one = moved_in(real)
    real.alarm(one, loop.time() + 0.02)
    async with asyncio.timeout(5):
        await real.wait()
    assert real.take(10) == [one]


async def test_a_turn_that_could_not_begin_comes_again(residents: Residents, hand: Hand) -> None:
    one = moved_in(residents, resting=False)
    residents.take(10)
    residents.put_back([one], hand.at + 1)
    assert not one.busy
    assert not await rung(residents)
    hand.at += 1
    assert residents.take(10) == []
    assert await rung(residents)
    assert residents.take(10) == [one]


async def test_a_limit_leaves_the_rest_for_the_next_time(residents: Residents) -> None:
    three = [moved_in(residents, resting=False) for _ in range(3)]
    assert residents.take(2) == three[:2]
    assert await rung(residents)
    assert residents.take(2) == three[2:]


async def test_an_old_actor_does_not_move_out_its_successor(residents: Residents) -> None:
    old = moved_in(residents)
    new = Actor(run=old.run, epoch=Epoch(2), owner="n1/y", renewed_at=0.0)
    residents.add(new)
    residents.remove(old)
    assert residents.get(old.id) is new
