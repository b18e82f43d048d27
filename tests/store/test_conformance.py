"""What the runtime relies on in the store, said through its ports alone: every store must pass, the simulation's too.

An implementation is a row of ``IMPLEMENTATIONS``: how to open a ``Book`` over it. Nothing here looks into tables.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from msgspec.structs import replace

from daemon.machine.commands import Epoch, RunId
from daemon.machine.ground import Ground
from daemon.store.journal import Lane
from daemon.store.pool import open_pool
from tests.machine.grounds import Said
from tests.machine.scenario import acked, chunk, done, failed, passive, step
from tests.sim import postgres as double
from tests.sim.line import Connection, Near
from tests.store.conftest import OWNER, Book


@asynccontextmanager
async def over_postgres(database: str) -> AsyncIterator[Book]:
    pool, lane = await open_pool(database, size=4, patience_s=10), Lane(database)
    try:
        yield Book(pool, lane)
    finally:
        await lane.close()
        await pool.close()


class InMemory(Book):
    """The same book over the simulation's double."""

    def __init__(self) -> None:
        self._server = double.Postgres(lambda: int(time.time() * 1000))
        connection = Connection(self._server, Near())
        super().__init__(pool=None, lane=double.Lane(connection))  # type: ignore[arg-type] # there is no pool
        self.runs = double.Runs(connection)  # type: ignore[assignment] # what the book uses of it
        self.claims = double.Claims(connection)  # type: ignore[assignment] # all that the runtime uses of it
        self.passive = double.PassiveRuns(connection)  # type: ignore[assignment] # as above

    async def forgive(self, run_id: RunId) -> None:
        row = self._server.runs[run_id]
        row.wake_at = None if row.owner is not None else row.wake_at


@asynccontextmanager
async def in_memory(database: str) -> AsyncIterator[Book]:
    yield InMemory()


IMPLEMENTATIONS: dict[str, Callable[[str], AbstractAsyncContextManager[Book]]] = {
    "postgres": over_postgres,
    "memory": in_memory,
}


@pytest.fixture(params=IMPLEMENTATIONS)
async def memory(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Book]:
    async with IMPLEMENTATIONS[request.param](database) as opened:
        yield opened


async def test_a_claim_raises_the_epoch_each_time(memory: Book) -> None:
    story = await memory.open(step())
    epochs = []
    for owner in ("one", "two", "three"):
        claimed, now_ms = await memory.claims.claim({story.run.id: owner})
        epochs += [epoch for _, epoch in claimed]
        assert now_ms > 0
    assert epochs == [Epoch(2), Epoch(3), Epoch(4)]


async def test_a_claim_reads_back_what_was_committed(memory: Book) -> None:
    story = await memory.open(step("a"), step("b", goes_on=True), step("c", manual=True))
    story.hear(acked(story.req), chunk(story.req, "a line\n"), done(story.req, {"n": 1}))
    story.hear(failed(story.req))
    await memory.write(story)
    assert await memory.claim(story.run.id) == story.run


async def test_a_claim_of_a_run_that_does_not_exist_answers_nothing(memory: Book) -> None:
    story = await memory.open(step())
    claimed, _ = await memory.claims.claim({RunId(story.run.workflow_id): OWNER})
    assert claimed == []


async def test_only_the_last_claim_may_commit(memory: Book) -> None:
    story = await memory.open(step())
    late = memory.told(story)
    before = await memory.claim(story.run.id, "thief")
    outcomes = await memory.lane.commit(late[:1])
    assert outcomes.fenced == {story.run.id}
    assert await memory.claim(story.run.id) == before


async def test_a_transition_is_committed_on_the_seq_it_was_made_for_or_not_at_all(memory: Book) -> None:
    story, other = await memory.open(step()), await memory.open(step())
    await memory.write(story)
    story.hear(acked(story.req), done(story.req))
    (wrong,), (right,) = memory.told(story), memory.told(other)
    outcomes = await memory.lane.commit([replace(wrong, expected_seq=0), right])
    assert outcomes.fenced == {story.run.id}
    assert set(outcomes.committed) == {other.run.id}
    assert await memory.claim(other.run.id) == other.run
    assert (await memory.claim(story.run.id)).last_seq == wrong.expected_seq


async def test_committing_again_what_was_committed_changes_nothing(memory: Book) -> None:
    story = await memory.open(step())
    (told,) = memory.told(story)
    await memory.lane.commit([told])
    outcomes = await memory.lane.commit([told])
    assert set(outcomes.committed) == {story.run.id}
    assert await memory.claim(story.run.id) == story.run


async def test_a_command_is_open_until_a_commit_gives_its_verdict(memory: Book) -> None:
    story = await memory.open(step(manual=True))
    opened = await memory.claims.open_commands([story.run.id])
    assert [command.kind for command in opened[story.run.id]] == ["start"]
    story.turn(commands=opened[story.run.id])
    await memory.write(story)
    assert await memory.claims.open_commands([story.run.id]) == {}


async def test_a_release_clears_the_owner_of_its_own_claim_only(memory: Book) -> None:
    story = await memory.open(step())
    run_id = story.run.id
    assert await memory.claims.still_held([(run_id, OWNER, Epoch(1))]) == {run_id}
    assert await memory.claims.release([(run_id, Epoch(1), "thief", None, 0)]) == set()
    assert await memory.claims.release([(run_id, Epoch(1), OWNER, 1, 0)]) == {run_id}
    assert await memory.claims.still_held([(run_id, OWNER, Epoch(1))]) == set()
    assert await memory.due() == [run_id]


async def test_who_waits_for_an_hour_to_come_is_not_due_before(memory: Book) -> None:
    story = await memory.open(step())
    _, now_ms = await memory.claims.claim({story.run.id: OWNER})
    await memory.claims.release([(story.run.id, Epoch(2), OWNER, now_ms + 3_600_000, 0)])
    assert await memory.due() == []
    await memory.claims.wake_waiting({"agent-2"})
    assert await memory.due() == []
    await memory.claims.wake_waiting({"agent-1"})
    assert await memory.due() == [story.run.id]


async def test_all_who_wait_for_an_hour_can_be_woken(memory: Book) -> None:
    story = await memory.open(step())
    _, now_ms = await memory.claims.claim({story.run.id: OWNER})
    await memory.claims.release([(story.run.id, Epoch(2), OWNER, now_ms + 3_600_000, 0)])
    await memory.claims.wake_waiting()
    assert await memory.due() == [story.run.id]


async def test_a_run_that_was_looked_at_sleeps_on_unless_somebody_came_meanwhile(memory: Book) -> None:
    story = await memory.open(step())
    story.hear(acked(story.req))
    await memory.write(story)
    await memory.claims.release([(story.run.id, Epoch(1), OWNER, 1_000, story.run.last_seq)])
    (found,) = await memory.passive.due(10)
    assert (found.run_id, found.epoch, found.passive) == (story.run.id, Epoch(1), passive(story.run))
    assert await memory.passive.due(10, {story.run.id}) == []
    later = found.now + 3_600_000
    await memory.claims.wake_waiting()
    assert await memory.passive.sleep_on([(found, later)]) == set(), "woken meanwhile"
    (again,) = await memory.passive.due(10)
    assert await memory.passive.sleep_on([(again, later)]) == {story.run.id}
    assert await memory.due() == []
    assert await memory.passive.sleep_on([(again, None)]) == set(), "it has moved already"


async def test_a_run_that_is_let_go_for_a_hold_that_is_over_is_due_at_once(memory: Book) -> None:
    """Who had it may never hear that, and who heard it has woken whom it found by then."""
    story = await memory.open(step(), grounds=Said(lambda agent_id, tool_name: Ground(held="somebody holds it")))
    await memory.write(story)
    assert story.run.paused_reason == "held"
    await memory.claims.release([(story.run.id, Epoch(1), OWNER, None, story.run.last_seq)])
    assert await memory.due() == [story.run.id]
