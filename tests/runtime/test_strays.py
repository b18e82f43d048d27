"""Letters handed over in memory: heard in order, bounded, and never lost with the run that they were for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
import uuid_utils.compat as uuid7

from daemon.errors import FabricUnavailable
from daemon.fabric.inbox import Inbox
from daemon.machine.commands import IN_MEMORY, Entry, Epoch, Mark, RunId
from daemon.machine.state import Run, make_req_id, new_run
from daemon.runtime.actor import Actor
from daemon.runtime.residents import Residents
from daemon.runtime.strays import Strays
from tests.machine.scenario import spec
from tests.machine.scenario import step as machine_step
from tests.patience import eventually
from tests.runtime.harness import Rig, count, step


def resident(residents: Residents) -> Actor:
    name = RunId(uuid7.uuid7())
    run: Run = new_run(run_id=name, workflow_id=name, user_id="ann", nonce=b"n" * 16, spec=spec(machine_step()))
    actor = Actor(run=run, epoch=Epoch(1), owner="n1/x", renewed_at=0.0)
    residents.add(actor)
    return actor


def call_of(run_id: RunId) -> str:
    return make_req_id(run_id, b"n" * 16, 0, 0)


def test_a_run_that_lives_here_is_handed_its_letters_and_others_are_not() -> None:
    residents = Residents(time.monotonic, hold_s=60)
    actor = resident(residents)
    residents.take(10)
    actor.unread = False
    residents.free(actor)
    assert residents.hand(call_of(actor.id), "h", Entry(IN_MEMORY, b"letter", Mark(1, 1)))
    assert actor.mail == [Entry(IN_MEMORY, b"letter", Mark(1, 1))]
    assert not actor.unread, "nothing is in its inbox"
    assert residents.take(10) == [actor]
    letter = Entry(IN_MEMORY, b"letter", Mark(1, 2))
    assert not residents.hand(call_of(RunId(uuid7.uuid7())), "h", letter)
    assert not residents.hand(call_of(actor.id) + "x", "h", letter), "no id of ours, whatever it begins with"
    residents.remove(actor)
    assert not residents.hand(call_of(actor.id), "h", letter)


def test_past_the_bound_a_chunk_is_dropped_and_a_result_is_not() -> None:
    residents = Residents(time.monotonic, hold_s=60, bound=2)
    actor, before = resident(residents), count("runwarden_chunks_dropped_total")
    for number in range(3):
        assert residents.hand(call_of(actor.id), "s", Entry(IN_MEMORY, b"chunk", Mark(1, number)))
    assert residents.hand(call_of(actor.id), "h", Entry(IN_MEMORY, b"result", Mark(1, 3)))
    assert [entry.raw for entry in actor.mail] == [b"chunk", b"chunk", b"result"]
    assert count("runwarden_chunks_dropped_total") == before + 1


async def test_what_a_run_leaves_behind_is_brought_to_its_inbox_when_redis_is_there_again() -> None:
    class Shelf:
        """An inbox that is away for the first call."""

        def __init__(self) -> None:
            self.kept: list[tuple[RunId, Entry]] = []
            self.away = True

        async def give_back(self, letters: Sequence[tuple[RunId, Entry]]) -> None:
            if self.away:
                self.away = False
                raise FabricUnavailable
            self.kept += letters

    residents, shelf = Residents(time.monotonic, hold_s=60), Shelf()
    actor = resident(residents)
    residents.hand(call_of(actor.id), "h", Entry(IN_MEMORY, b"one", Mark(1, 1)))
    residents.drop(actor, [Entry(b"1-1", b"in its inbox", Mark(1, 0)), Entry(IN_MEMORY, b"folded in vain", Mark(1, 0))])
    bringing = asyncio.create_task(residents.strays.run(shelf))  # type: ignore[arg-type]  # all that it uses of one
    await residents.strays.returned()
    bringing.cancel()
    assert [entry.raw for _, entry in shelf.kept] == [b"folded in vain", b"one"]
    residents.keep(actor, [Entry(IN_MEMORY, b"later", Mark(1, 2))])  # of a run that has left already
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await residents.strays.returned()


async def test_nothing_to_bring_is_nothing_to_wait_for() -> None:
    strays = Strays()
    strays.add(RunId(uuid7.uuid7()), [Entry(b"1-1", b"in its inbox", Mark(1, 1))])
    await strays.returned()


async def test_a_result_that_a_fenced_node_heard_is_in_the_inbox_for_the_next_holder(rig: Rig) -> None:
    await rig.start(lease_ttl_s=60, sweep_period_s=60)
    run_id = await rig.create(step("a", "gated"))
    await rig.executing(1)
    await rig.told(run_id, "tool.log")
    await rig.pool.execute("UPDATE workflow_runs SET epoch = epoch + 1, owner = 'thief/x' WHERE id = $1", run_id)
    await rig.redis.redis.set(rig.keys.lease(run_id), "thief/x|9")  # so that nobody here takes it again
    rig.tools.gate.set()
    inbox = Inbox(rig.redis, rig.keys, bound=1000)

    async def there() -> bool:
        return any(b'"RESULT"' in raw for _, raw, *_ in (await inbox.read([run_id])).get(run_id, []))

    await eventually(there, what="the RESULT in the inbox")
    assert (await rig.row(run_id))["status"] == "running"
