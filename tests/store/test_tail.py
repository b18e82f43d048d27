"""Commits that are appended to the log alone, and the rows that follow; nobody who looks can tell the difference."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from msgspec.structs import replace

from daemon import telemetry
from daemon.auth.caller import Caller
from daemon.dev.embedded import EmbeddedPostgres
from daemon.machine.commands import RunId
from daemon.machine.record import Transition
from daemon.machine.state import Limits
from daemon.store.commit import APPEND, appending
from daemon.store.journal import Lane
from daemon.store.log import EventLog
from daemon.store.matching import Filter
from daemon.store.pool import Pool
from daemon.store.runs import RunView
from daemon.store.tail import CHECKPOINT_EVERY
from tests.machine import test_properties as tales
from tests.machine.scenario import Story, acked, chunk, done, step
from tests.patience import eventually
from tests.store.conftest import Book, move_schema
from tests.store.test_claims import Tale

ROWS = ("workflow_runs", "workflow_run_steps", "workflow_run_attempts")
ANN = Caller("ann")
LOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted"


class Clock:
    """A lane's clock that stands, unless it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def book(pool: Pool, database: str, clock: Clock) -> AsyncIterator[Book]:
    """Its lane takes every commit for quick."""
    lane = Lane(database, monotonic=clock)
    yield Book(pool, lane)
    await lane.close()


def counted(name: str) -> float:
    return telemetry.registry.get_sample_value(f"runwarden_{name}_total") or 0.0


async def appended(book: Book, *commits: Transition) -> None:
    """Commit each, and be sure that it was appended."""
    for one in commits:
        before = counted("appends")
        assert (await book.lane.commit([one])).committed
        assert counted("appends") == before + 1


async def appending_in(other: asyncpg.Connection[asyncpg.Record], book: Book, one: Transition) -> Any:
    """The transaction of a session that has appended a commit of the lane's run, and has not ended."""
    tail = book.lane._tail
    assert tail is not None
    changes = tail.changes(one, 0.0)
    assert changes is not None
    transaction = other.transaction()
    await transaction.start()
    assert await other.fetchval(APPEND, *appending(one, changes, tail.page))
    return transaction


async def moving(book: Book, steps: int = 3) -> tuple[Story, list[Transition]]:
    """A run whose first commit is written, and its next ones up to the last step."""
    story = await book.open(*(step(f"s{number}") for number in range(steps)))
    await book.write(story)
    for number in range(steps - 1):
        story.hear(acked(story.req), chunk(story.req, f"line {number}\n"), done(story.req, {"n": number}))
    return story, book.told(story)


async def rows(connection: Any, run_id: RunId) -> dict[str, list[dict[str, Any]]]:
    """What the tables say of a run, as they are."""
    found = {}
    for table in ROWS:
        key = "id" if table == "workflow_runs" else "run_id"
        told = await connection.fetch(f"SELECT * FROM {table} WHERE {key} = $1 ORDER BY 1, 2, 3", run_id)
        found[table] = [dict(row) for row in told]
    return found


async def rows_by_the_trigger(book: Book, run_id: RunId) -> dict[str, list[dict[str, Any]]]:
    """What they would say if the run changed hands now; nothing stays of it."""
    async with book.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute("UPDATE workflow_runs SET owner = owner WHERE id = $1", run_id)
            return await rows(connection, run_id)
        finally:
            await transaction.rollback()


async def view(book: Book, run_id: RunId) -> RunView:
    found = await book.runs.view(run_id, by=ANN)
    assert found is not None
    return found


def nameless(told: dict[str, list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """Without what two runs of the same story cannot have in common."""
    own = ("id", "run_id", "req_id", "created_at", "owner", "wake_at")
    return [[{name: row[name] for name in row if name not in own} for row in table] for table in told.values()]


# --- nobody can tell ------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tales.steps, tales.limits, tales.flags, tales.st.lists(tales.acts, min_size=3, max_size=15))
async def test_whatever_happens_the_rows_become_what_each_commit_would_have_written(
    book: Book, database: str, shape: list[dict[str, Any]], bounds: Limits, listening: bool, tale: list[Tale]
) -> None:
    workflow = [step(f"s{index}", **about) for index, about in enumerate(shape)]
    quick, slow = [await book.open(*workflow, limits=bounds, listening=listening) for _ in range(2)]
    steady = Lane(database, monotonic=iter(range(0, 10**9, 10)).__next__)
    try:
        for act in (None, *tale):
            for story in (quick, slow) if act is not None else ():
                act(story)  # type: ignore[misc] # the None is gone here
            assert not (await book.write(quick)).fenced
            book.lane, own = steady, book.lane
            assert not (await book.write(slow)).fenced
            book.lane = own
            by_the_trigger = await rows_by_the_trigger(book, quick.run.id)
            seen = await view(book, quick.run.id)
            written = await rows(book.pool, slow.run.id)
            assert nameless(by_the_trigger) == nameless(written)
            await book.lane.checkpoint()
            assert await rows(book.pool, quick.run.id) == by_the_trigger
            assert await view(book, quick.run.id) == seen
    finally:
        await steady.close()


async def test_a_run_is_read_as_its_log_stands(book: Book) -> None:
    story, commits = await moving(book)
    await appended(book, *commits)
    (row,) = (await rows(book.pool, story.run.id))["workflow_runs"]
    assert row["last_seq"] < story.run.last_seq, "else nothing is shown here"
    head = await book.runs.head(story.run.id, by=ANN)
    (item,) = await book.runs.listed(Filter(), user_id="ann", limit=10)
    seen = await view(book, story.run.id)
    for one in (head, item.head, seen.head):
        assert one is not None
        assert (one.last_seq, one.current_step_index) == (story.run.last_seq, 2)
        assert one.updated_at.timestamp() * 1000 == story.run.last_at
    assert [(one.step_id, one.status) for one in seen.steps] == [
        ("s0", "success"),
        ("s1", "success"),
        ("s2", "running"),
    ]
    assert await EventLog(book.pool).last_seqs([story.run.id]) == {story.run.id: story.run.last_seq}


# --- when rows follow -----------------------------------------------------------------------------------------------


async def test_one_commit_of_so_many_writes_the_rows(book: Book) -> None:
    _, commits = await moving(book, 2 * CHECKPOINT_EVERY + 1)
    kinds = []
    for one in commits:
        before = counted("appends")
        await book.lane.commit([one])
        kinds.append(counted("appends") - before)
    assert kinds == ([1.0] * (CHECKPOINT_EVERY - 1) + [0.0]) * 2


async def test_rows_follow_when_the_run_pauses_for_breath(
    book: Book, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.store.journal.CHECKPOINT_AFTER_S", 0.001)
    story, commits = await moving(book)
    keeping = asyncio.create_task(book.lane.keep_up())
    before = counted("checkpoints")
    await appended(book, *commits)
    clock.now += 1.0
    await eventually(lambda: counted("checkpoints") > before)
    (row,) = (await rows(book.pool, story.run.id))["workflow_runs"]
    assert row["last_seq"] == story.run.last_seq
    story.hear(done(story.req))
    await book.write(story)
    assert (await rows(book.pool, story.run.id))["workflow_runs"][0]["status"] == "completed"
    keeping.cancel()


async def test_who_claims_or_reads_a_run_that_was_let_go_finds_its_rows(book: Book) -> None:
    story, commits = await moving(book)
    await appended(book, *commits)
    assert await book.claims.release([(story.run.id, story.epoch, "me", 1, commits[0].run.last_seq)]) == set()
    assert await book.claims.release([(story.run.id, story.epoch, "me", 1, story.run.last_seq)]) == {story.run.id}
    assert (await rows(book.pool, story.run.id))["workflow_runs"][0]["last_seq"] == story.run.last_seq
    assert await book.claim(story.run.id) == story.run


async def test_a_run_that_is_let_go_right_after_an_append_leaves_no_error_in_the_log_of_postgres(
    book: Book, postgres: EmbeddedPostgres
) -> None:
    story, commits = await moving(book)
    await appended(book, *commits)
    await book.claims.release([(story.run.id, story.epoch, "me", 1, story.run.last_seq)])
    before = postgres.log_path.stat().st_size
    assert await book.lane.checkpoint()
    assert book.lane._tail is None
    assert postgres.log_path.read_text()[before:].count("ERROR") == 0


async def test_a_claim_waits_for_an_append_that_is_under_way_and_reads_it(
    book: Book, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    story, commits = await moving(book, 2)
    transaction = await appending_in(other, book, commits[0])
    claiming = asyncio.create_task(book.claim(story.run.id, "thief"))
    await eventually(lambda: book.pool.fetchval(LOCKED), what="the claim being kept waiting")
    await transaction.commit()
    assert await claiming == story.run


async def test_a_run_is_not_let_go_in_a_state_that_an_append_under_way_leaves_behind(
    book: Book, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    story, (one,) = await moving(book, 2)
    before, transaction = one.expected_seq, await appending_in(other, book, one)
    releasing = asyncio.create_task(book.claims.release([(story.run.id, story.epoch, "me", None, before)]))
    await eventually(lambda: book.pool.fetchval(LOCKED), what="the release being kept waiting")
    await transaction.commit()
    assert await releasing == set()
    assert await book.claims.release([(story.run.id, story.epoch, "me", None, story.run.last_seq)]) == {story.run.id}


async def test_an_append_that_waits_for_a_claim_is_fenced(
    book: Book, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    story, commits = await moving(book, 2)
    transaction = other.transaction()
    await transaction.start()
    await other.execute("SELECT FROM workflow_runs WHERE id = $1 FOR UPDATE", story.run.id)
    await other.execute("UPDATE workflow_runs SET epoch = epoch + 1, owner = 'thief' WHERE id = $1", story.run.id)
    committing = asyncio.create_task(book.lane.commit(commits))
    await eventually(lambda: book.pool.fetchval(LOCKED), what="the append being kept waiting")
    await transaction.commit()
    assert (await committing).fenced == {story.run.id}
    assert await book.seqs(story.run.id) == list(range(1, commits[0].expected_seq + 1))


async def test_an_append_names_the_authority_that_it_went_by(book: Book) -> None:
    story, commits = await moving(book, 2)
    version = await book.pool.fetchval("SELECT version FROM authority_version")
    outcomes = await book.lane.commit([replace(commits[0], authority=version - 1)])
    assert outcomes.outdated == {story.run.id}
    await appended(book, replace(commits[0], authority=version))


# --- what may go wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["appended", "written"])
async def test_where_postgres_has_lost_an_appended_page_nothing_is_added_to_the_log(book: Book, last: str) -> None:
    """As after a failover: the run is parked, and its log has no hole."""
    story, commits = await moving(book, 4)
    await appended(book, *commits[:2])
    lost = commits[1].events[0].seq
    async with book.pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL session_replication_role = replica")  # so that history can be rewritten
        await connection.execute("DELETE FROM workflow_run_pages WHERE first_seq = $1", lost)
    one = commits[2]
    if last == "written":
        one = replace(one, run=replace(one.run, error_code="anything that no page names"))
    outcomes = await book.lane.commit([one])
    assert outcomes.fenced == {story.run.id}
    (row,) = (await rows(book.pool, story.run.id))["workflow_runs"]
    assert (row["status"], row["error_code"]) == ("paused", "commits_lost")
    assert await book.seqs(story.run.id) == list(range(1, row["last_seq"] + 1))


DAMAGES = {
    "nonsense": "replace(changes::text, 'intent', 'nonsense')::json",
    "nothing": "NULL",
    "too deep": """replace(changes::text, '"attempt":', '"result":"' || repeat('[', 99999) || '","attempt":')::json""",
}


async def damage(book: Book, changes: str) -> None:
    """Write something else into every page that was appended."""
    async with book.pool.acquire() as connection, connection.transaction():
        await damage_by(connection, changes)


async def damage_by(connection: Any, changes: str) -> None:
    """The same, in the transaction of this connection."""
    await connection.execute("SET LOCAL session_replication_role = replica")
    await connection.execute(f"UPDATE workflow_run_pages SET changes = {changes} WHERE changes IS NOT NULL")


@pytest.mark.parametrize("changes", DAMAGES.values(), ids=DAMAGES)
async def test_a_page_that_no_row_can_take_keeps_no_other_run_from_being_claimed(book: Book, changes: str) -> None:
    damaged, commits = await moving(book, 2)
    sound = await book.open(step())
    await appended(book, *commits)
    await damage(book, changes)
    claimed, _ = await book.claims.claim({damaged.run.id: "n/1", sound.run.id: "n/2"})
    assert [run.id for run, _ in claimed] == [sound.run.id]
    (row,) = (await rows(book.pool, damaged.run.id))["workflow_runs"]
    assert (row["owner"], row["wake_at"] is None) == (None, False), "it is let go, to be offered again"
    assert await book.seqs(damaged.run.id) == list(range(1, commits[0].run.last_seq + 1))


@pytest.mark.parametrize("changes", DAMAGES.values(), ids=DAMAGES)
async def test_nor_is_its_run_carried_on_by_who_had_to_wait_for_that_page(
    book: Book, other: asyncpg.Connection[asyncpg.Record], changes: str
) -> None:
    story, commits = await moving(book, 2)
    transaction = await appending_in(other, book, commits[0])
    await damage_by(other, changes)
    claiming = asyncio.create_task(book.claims.claim({story.run.id: "n/1"}))
    await eventually(lambda: book.pool.fetchval(LOCKED), what="the claim being kept waiting")
    await transaction.commit()
    assert (await claiming)[0] == [], "the rows are older than the log"
    assert await book.pool.fetchval("SELECT owner IS NULL AND wake_at IS NOT NULL FROM workflow_runs"), "it is let go"


@pytest.mark.parametrize("changes", DAMAGES.values(), ids=DAMAGES)
async def test_an_owner_whose_rows_cannot_follow_gives_the_run_up(book: Book, changes: str) -> None:
    story, commits = await moving(book)
    await appended(book, commits[0])
    await damage(book, changes)
    assert await book.lane.checkpoint()
    assert (await book.lane.commit(commits[1:])).fenced == {story.run.id}
    assert await book.seqs(story.run.id) == list(range(1, commits[0].run.last_seq + 1))


async def test_the_way_back_writes_what_was_appended(book: Book, database: str) -> None:
    story, commits = await moving(book)
    await appended(book, *commits)
    before = await rows_by_the_trigger(book, story.run.id)
    await book.pool.expire_connections()
    move_schema(database, "0024.checkpoints", back=True)
    assert await rows(book.pool, story.run.id) == before


async def test_the_way_back_waits_for_an_append_under_way_and_writes_it_too(
    book: Book, database: str, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    """Its node has ended; the backend that it left has not."""
    story, commits = await moving(book, 2)
    transaction = await appending_in(other, book, commits[0])
    await book.pool.expire_connections()
    going_back = asyncio.create_task(asyncio.to_thread(move_schema, database, "0024.checkpoints", back=True))
    await eventually(lambda: book.pool.fetchval(LOCKED), what="the way back being kept waiting")
    await transaction.commit()
    await going_back
    assert (await rows(book.pool, story.run.id))["workflow_runs"][0]["last_seq"] == story.run.last_seq


@pytest.mark.parametrize("owner", ["me", None])
async def test_the_way_back_drops_nothing_that_no_row_could_take(book: Book, database: str, owner: str | None) -> None:
    _, commits = await moving(book, 2)
    await appended(book, *commits)
    await damage(book, DAMAGES["nothing"])
    await book.pool.execute("UPDATE workflow_runs SET owner = $1", owner)
    with pytest.raises(psycopg.Error, match=f"run {commits[0].run_id} .* its log"):
        await asyncio.to_thread(move_schema, database, "0024.checkpoints", back=True)
    assert await book.pool.fetchval("SELECT written_seq < last_seq FROM workflow_run_heads")


async def test_a_commit_under_way_and_the_migration_do_not_wait_for_each_other(
    book: Book, database: str, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    """A commit locks the runs' table first and the pages' last."""
    await book.pool.expire_connections()
    move_schema(database, "0024.checkpoints", back=True)
    async with other.transaction():
        await other.execute("UPDATE workflow_runs SET recoveries = 0")
        migrating = asyncio.create_task(asyncio.to_thread(move_schema, database, "0024.checkpoints"))
        await eventually(lambda: book.pool.fetchval(LOCKED), what="the migration being kept waiting")
        await other.execute("INSERT INTO workflow_run_pages SELECT gen_random_uuid(), 1, '[]', now()")
    await migrating
