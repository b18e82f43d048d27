"""Commits whose outcome is unknown: the journal asks until it knows, and applies nothing twice.

Real connections are cut, real servers restarted, real locks taken; nothing is told to the journal but by Postgres.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Literal, TypeAlias

import asyncpg
import pytest
import uuid_utils.compat as uuid7
from msgspec.structs import replace

from daemon import telemetry
from daemon.dev.embedded import EmbeddedPostgres
from daemon.errors import StoreUnavailable
from daemon.machine.commands import Command, CommandId
from daemon.store.commands import Commands, NewCommand
from daemon.store.journal import Lane
from daemon.store.migrate import migrate
from daemon.store.pool import Pool, open_pool, reading
from tests.machine.scenario import Story, acked, done, step
from tests.patience import eventually
from tests.store.conftest import ANN, Book
from tests.store.wire import Wire

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def wire(database: str) -> AsyncIterator[Wire]:
    with tempfile.TemporaryDirectory(prefix="rw-wire-") as home:
        opened = Wire(database, Path(home))
        await opened.open()
        yield opened
        await opened.close()


@pytest.fixture(params=["appended", "written"])
def monotonic(request: pytest.FixtureRequest) -> Callable[[], float]:
    """The lane's clock: under one of these commits are appended to the log, under the other written to the rows too."""
    return time.monotonic if request.param == "appended" else itertools.count(step=10.0).__next__


@pytest.fixture
async def far(pool: Pool, wire: Wire, monotonic: Callable[[], float]) -> AsyncIterator[Book]:
    """A book whose lane goes through the wire; everything else reaches Postgres directly."""
    lane = Lane(wire.url, monotonic=monotonic)
    yield Book(pool, lane)
    await lane.close()


@pytest.fixture
async def book(pool: Pool, database: str, monotonic: Callable[[], float]) -> AsyncIterator[Book]:
    lane = Lane(database, monotonic=monotonic)
    yield Book(pool, lane)
    await lane.close()


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that a test may restart."""
    with tempfile.TemporaryDirectory(prefix="rw-pg-") as home, EmbeddedPostgres(Path(home) / "p", fast=True) as server:
        migrate(server.url)
        yield server


def repeats() -> float:
    return telemetry.registry.get_sample_value("runwarden_commit_repeats_total") or 0.0


async def ongoing(book: Book) -> Story:
    """A run whose first turns are committed (so that the lane's statements are prepared) and whose next is told."""
    story = await book.open(step("a"), step("b"))
    await book.write(story)
    story.hear(acked(story.req))
    await book.write(story)
    story.hear(done(story.req))
    return story


async def waiting(pool: Pool, commits: int) -> bool:
    """Whether so many commits wait for a lock."""
    found = await pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'runwarden journal' AND wait_event_type = 'Lock'"
    )
    return bool(found == commits)


async def test_a_commit_whose_answer_is_lost_is_known_as_committed_and_not_applied_again(far: Book, wire: Wire) -> None:
    story = await ongoing(far)
    wire.lose("answer")
    outcomes = await far.write(story)
    assert wire.lost == 1
    assert set(outcomes.committed) == {story.run.id}
    assert await far.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))
    assert [row["status"] for row in await far.rows("workflow_run_steps")] == ["success", "running"]


async def test_a_commit_that_never_reached_postgres_is_repeated(far: Book, wire: Wire) -> None:
    story = await ongoing(far)
    wire.lose("question")
    outcomes = await far.write(story)
    assert wire.lost == 1
    assert set(outcomes.committed) == {story.run.id}
    assert await far.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))


async def test_when_the_answer_is_lost_and_another_claims_the_old_owner_is_fenced(far: Book, wire: Wire) -> None:
    """It cannot know that its commit stands, and need not: the run belongs to another, who has read it."""
    story = await ongoing(far)
    wire.lose("answer", after=lambda: far.claim(story.run.id, "thief"))
    outcomes = await far.write(story)
    assert outcomes.fenced == {story.run.id}
    assert await far.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))


async def test_a_lost_commit_that_goes_on_is_never_taken_for_what_is_decided_after_it(far: Book, wire: Wire) -> None:
    """It waits for a lock, its connection is cut, and meanwhile the authority that it went by is another. Were the run
    decided anew, this commit would come first, as long as the other, and count for it. Its owner gives the run up."""
    story, version = await ongoing(far), await far.pool.fetchval("SELECT version FROM authority_version")
    (told,) = [replace(one, authority=version) for one in far.told(story)]
    async with far.pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", story.run.id)
        committing = asyncio.create_task(far.lane.commit([told]))
        await eventually(lambda: waiting(far.pool, 1))
        await far.pool.execute("UPDATE authority_version SET version = version + 1")
        wire.cut()
        outcomes = await committing
    assert (outcomes.fenced, outcomes.outdated) == ({story.run.id}, set())
    await eventually(lambda: _advanced(far, told.run.last_seq, story))
    assert (await far.claim(story.run.id, "next")).last_seq == told.run.last_seq


async def _advanced(book: Book, last_seq: int, story: Story) -> bool:
    return bool(
        await book.pool.fetchval("SELECT last_seq FROM workflow_run_heads WHERE id = $1", story.run.id) == last_seq
    )


async def test_a_lost_answer_of_a_refusal_decides_the_command_once(far: Book, wire: Wire) -> None:
    """A transition without events does not move last_seq, so it looks undone; to repeat it changes nothing."""
    story = await far.open(step(manual=True))
    await far.write(story)
    story.say("resume", seen=99)
    wire.lose("answer")
    assert set((await far.write(story)).committed) == {story.run.id}


@pytest.mark.parametrize("seen", ["what stands", "what does not"])
async def test_a_lost_answer_leaves_one_line_in_the_audit(far: Book, wire: Wire, seen: str) -> None:
    story = await far.open(step(manual=True))
    await far.write(story)
    number, pause = CommandId(uuid7.uuid7()), story.run.paused_seq if seen == "what stands" else 99
    said = NewCommand(id=number, run_id=story.run.id, kind="resume", payload={}, seen_seq=pause, origin=ANN)
    await Commands(far.pool).add(said)
    story.turn(commands=[Command(id=number, kind="resume", seen_seq=pause, issued_by="ann")])
    wire.lose("answer")
    assert set((await far.write(story)).committed) == {story.run.id}
    (line,) = [line for line in await far.rows("audit_log") if line["action"] == "run.resume"]
    assert line["outcome"] == ("applied" if seen == "what stands" else "refused")


async def test_a_repeat_that_meets_the_first_try_still_under_way_is_not_applied_twice(
    far: Book, wire: Wire, other: Session
) -> None:
    """The first commit waits for a lock in a backend whose client is gone; the second queues up behind it."""
    story = await ongoing(far)
    async with other.transaction():
        await other.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", story.run.id)
        writing = asyncio.create_task(far.write(story))
        await eventually(lambda: waiting(far.pool, 1))
        wire.cut()
        await eventually(lambda: waiting(far.pool, 2))
    assert set((await writing).committed) == {story.run.id}
    assert await far.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))


@pytest.mark.parametrize("lost", ["question", "answer"])
@pytest.mark.parametrize("then", ["appended", "written"])
async def test_after_a_checkpoint_that_got_no_answer_the_run_goes_on(
    pool: Pool, wire: Wire, lost: Literal["question", "answer"], then: str
) -> None:
    now = 0.0
    lane = Lane(wire.url, monotonic=lambda: now)
    book = Book(pool, lane)
    story = await ongoing(book)
    wire.lose(lost)
    assert not await lane.checkpoint()
    assert wire.lost == 1
    now += 0.0 if then == "appended" else 10.0
    assert set((await book.write(story)).committed) == {story.run.id}
    assert [row["status"] for row in await book.rows("workflow_run_steps")] == ["success", "running"]
    assert await book.claim(story.run.id) == story.run
    await lane.close()


async def test_of_a_batch_each_run_gets_its_own_answer_after_a_loss(far: Book, wire: Wire) -> None:
    mine, theirs = await ongoing(far), await ongoing(far)
    await far.claim(theirs.run.id, "thief")
    wire.lose("answer")
    outcomes = await far.lane.commit([*far.told(mine), *far.told(theirs)])
    assert set(outcomes.committed) == {mine.run.id}
    assert outcomes.fenced == {theirs.run.id}
    assert await far.seqs(theirs.run.id) == [1, 2, 3]


async def test_a_lane_whose_backend_was_killed_goes_on(book: Book, other: Session) -> None:
    story = await ongoing(book)
    killed = await other.fetchval(
        "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'runwarden journal'"
    )
    assert killed == 1
    assert set((await book.write(story)).committed) == {story.run.id}


async def ended(pool: Pool, application: str, other: Session) -> None:
    """End the backends of an application, which say so to their clients."""
    query = "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE application_name = $1"
    assert await other.fetchval(query + " AND datname = current_database()", application) == 1


async def test_a_lane_told_of_its_end_before_the_connection_closes_goes_on(
    far: Book, wire: Wire, other: Session
) -> None:
    """The driver then answers with an error of its own, neither Postgres' nor the network's."""
    story = await ongoing(far)
    wire.may_close.clear()
    await ended(far.pool, "runwarden journal", other)
    before = repeats()
    assert set((await far.write(story)).committed) == {story.run.id}
    assert repeats() > before
    wire.may_close.set()


async def test_a_lane_closes_without_the_word_of_a_server_that_stands_still(far: Book, wire: Wire) -> None:
    """Its new connection is as deaf as the old one: neither may keep a node from ending."""
    await ongoing(far)
    wire.may_close.clear()
    await far.lane.close()


async def test_a_pool_told_of_an_end_before_the_connection_closes_says_unavailable(wire: Wire, other: Session) -> None:
    pool = await open_pool(wire.url, size=1, patience_s=10)
    try:
        wire.may_close.clear()
        await ended(pool, "runwarden", other)
        with pytest.raises(StoreUnavailable):
            async with reading(pool) as connection:
                await connection.fetchval("SELECT 1")
        async with reading(pool) as connection:
            assert await connection.fetchval("SELECT 1") == 1
    finally:
        pool.terminate()


async def test_a_backend_killed_in_the_midst_of_a_commit_loses_nothing(book: Book, other: Session) -> None:
    story = await ongoing(book)
    async with other.transaction():
        await other.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", story.run.id)
        writing = asyncio.create_task(book.write(story))
        await eventually(lambda: waiting(book.pool, 1))
        await book.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'runwarden journal'"
        )
    assert set((await writing).committed) == {story.run.id}
    assert await book.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))


async def test_when_postgres_restarts_in_the_midst_of_a_commit_it_is_repeated_until_known(
    own_postgres: EmbeddedPostgres,
) -> None:
    pool = await open_pool(own_postgres.url, size=4, patience_s=10)
    lane, session = Lane(own_postgres.url), await asyncpg.connect(own_postgres.url)
    try:
        book = Book(pool, lane)
        story = await ongoing(book)
        lock = session.transaction()
        await lock.start()
        await session.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", story.run.id)
        writing = asyncio.create_task(book.write(story))
        await eventually(lambda: waiting(pool, 1))
        before = repeats()
        await asyncio.to_thread(own_postgres.stop)
        await eventually(lambda: repeats() > before)
        await asyncio.to_thread(own_postgres.start)
        async with asyncio.timeout(60):
            outcomes = await writing
        assert set(outcomes.committed) == {story.run.id}
        assert await book.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))
    finally:
        session.terminate()
        await lane.close()
        await pool.close()


async def test_a_deadlock_is_repeated(book: Book, other: Session, database: str) -> None:
    """Ours can only arise with somebody else's transaction, since the journal locks in id order."""
    first, second = await ongoing(book), await ongoing(book)
    await book.lane.close()
    await other.execute(f"ALTER DATABASE {database.split('/')[3].split('?')[0]} SET deadlock_timeout = '3s'")
    await other.execute("SET deadlock_timeout = '1min'")  # so that the lane is the victim
    before = repeats()
    async with other.transaction():
        await other.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", second.run.id)
        writing = asyncio.create_task(book.write(first, second))
        await eventually(lambda: waiting(book.pool, 1))
        await other.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", first.run.id)
    assert set((await writing).committed) == {first.run.id, second.run.id}
    assert repeats() > before


async def test_a_serialisation_failure_is_repeated(book: Book, other: Session, database: str) -> None:
    story = await ongoing(book)
    await book.lane.close()
    name = database.split("/")[3].split("?")[0]
    await other.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    before = repeats()
    async with other.transaction():
        await other.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", story.run.id)
        await other.execute("UPDATE workflow_runs SET recoveries = 1 WHERE id = $1", story.run.id)
        writing = asyncio.create_task(book.write(story))
        await eventually(lambda: waiting(book.pool, 1))
    assert set((await writing).committed) == {story.run.id}
    assert repeats() == before + 1
    assert await book.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))
