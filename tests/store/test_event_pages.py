"""A commit's events as one row: how that is read, beside what the release before writes, and the way to it and back.

``OLD`` is today's commit with the INSERT of that release, which goes on while the database is migrated and nodes are
replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import psycopg
import pytest

from daemon.machine.record import Transition
from daemon.store.claims import Claims
from daemon.store.commit import COMMIT, arguments
from daemon.store.log import EVENTS, EventLog, Page
from daemon.store.pool import Pool
from tests.machine.scenario import Story, step
from tests.patience import eventually
from tests.store.conftest import Book, move_schema
from tests.store.test_schema import month, uuid_at

MIGRATIONS = ("0022.event_pages", "0024.checkpoints")
"""The one that is tested, and the later one that stands on it."""
PAGES = """
    INSERT INTO workflow_run_pages (run_id, first_seq, events, created_at)
    SELECT t.run_id, t.first_seq, t.events, to_timestamp(t.at_ms / 1e3::float8)
    FROM unnest($4::commit_page[]) AS t
"""
ROWS = """
    INSERT INTO workflow_run_events (run_id, seq, event_type, payload, created_at)
    SELECT t.run_id, t.seq, t.event_type, t.payload::json, to_timestamp(t.at_ms / 1e3::float8)
    FROM unnest($4::commit_event[]) AS t
"""
PAGE = """
        AND (g.page IS NULL OR EXISTS (
            SELECT FROM workflow_run_pages p WHERE p.run_id = g.run_id AND p.first_seq = g.page))"""
OLD = COMMIT.replace(PAGES, ROWS).replace(PAGE, "").replace("commit_run_after[]", "commit_run[]")
FILL = """
INSERT INTO workflow_run_pages SELECT $1, 5 * g + 1, json_agg(json_build_array('tool.log', '{}'::json)), now()
FROM generate_series(0, $2 - 1) AS g, generate_series(1, 5) GROUP BY g
"""


async def write_as_old(writer: Pool | asyncpg.Connection[asyncpg.Record], *transitions: Transition) -> None:
    """Commit as a node of the release before does."""
    for one in transitions:
        given = arguments([one]).moved
        given[0] = [(*run[:4], *run[5:]) for run in given[0]]
        given[3] = [(one.run_id, row.seq, row.event_type, row.payload, one.at) for row in one.events]
        assert await writer.fetchval(OLD, *given)


def back(database: str) -> None:
    for migration in reversed(MIGRATIONS):
        move_schema(database, migration, back=True)


def forward(database: str) -> None:
    for migration in MIGRATIONS:
        move_schema(database, migration)


async def carried(book: Book) -> tuple[Story, list[Transition]]:
    """A run from its beginning to its end, which is to be written."""
    story = await book.open(step("a"), step("b"), step("c"))
    for name in ("é", "b", "c"):
        story.succeed({"text": name})
    assert story.run.status == "completed"
    return story, book.told(story)


def frames(transitions: list[Transition]) -> list[bytes]:
    """What watchers heard, an event each."""
    heard = b"".join(one.told().frames for one in transitions)
    return [frame + b"\n\n" for frame in heard.removesuffix(b"\n\n").split(b"\n\n")]


async def rows(book: Book, run_id: UUID) -> list[tuple[object, ...]]:
    """The log as people query it."""
    found = await book.pool.fetch("SELECT * FROM workflow_run_events WHERE run_id = $1 ORDER BY seq", run_id)
    return [tuple(row) for row in found]


def test_the_statement_of_the_release_before_is_another() -> None:
    assert ROWS in OLD
    assert "commit_run[]" in OLD
    assert PAGE in COMMIT


async def test_a_commit_is_one_row_and_reads_as_a_row_an_event(book: Book) -> None:
    story, transitions = await carried(book)
    for one in transitions:
        await book.lane.commit([one])
    pages = await book.rows("workflow_run_pages")
    assert [row["first_seq"] for row in pages] == [one.expected_seq + 1 for one in transitions]
    assert [row["created_at"].timestamp() * 1000 for row in pages] == [one.at for one in transitions]
    assert await book.rows("workflow_run_single_events") == []
    found = [(seq, kind, payload) for _, seq, kind, payload, _ in await rows(book, story.run.id)]
    assert found == [(row.seq, row.event_type, row.payload) for one in transitions for row in one.events]


async def test_a_commit_without_events_is_no_row(book: Book) -> None:
    story = await book.open(step("a"))
    await book.write(story)
    before = await book.rows("workflow_run_pages")
    story.turn(commands=[story.command("approve")])  # at what waits for no approval: refused, and nothing happened
    (refusal,) = book.told(story)
    assert refusal.verdicts
    assert not refusal.events
    assert (await book.lane.commit([refusal])).committed
    assert await book.rows("workflow_run_pages") == before


@pytest.mark.parametrize("old", ["", "o", "o-", "-o", "oo--", "--oo", "o-o-o-o-o"])
async def test_a_log_reads_the_same_whoever_wrote_which_part_of_it(book: Book, old: str) -> None:
    """``o`` was written by a node of the release before: all of it, its beginning, its end, every other commit."""
    story, transitions = await carried(book)
    for number, one in enumerate(transitions):
        if old.ljust(len(transitions), old[-1:] or "-")[number] == "o":
            await write_as_old(book.pool, one)
        else:
            await book.lane.commit([one])
            await book.lane.checkpoint()
    assert bool(await book.rows("workflow_run_single_events")) == ("o" in old)
    log, run_id, told = EventLog(book.pool), story.run.id, frames(transitions)
    assert len(told) == story.run.last_seq
    for after in range(len(told) + 2):
        for limit in range(1, len(told) + 2):
            want = told[after : after + limit]
            ends = bool(want) and after + limit >= len(told)
            page = await log.page(run_id, after_seq=after, limit=limit)
            assert page == Page(b"".join(want), after + len(want), len(want), ends)
            events = await log.events(run_id, after_seq=after, limit=limit)
            assert [seq for seq, _ in events] == list(range(after + 1, after + 1 + len(want)))
            assert [one for _, one in events] == [frame.partition(b"data: ")[2].rstrip() for frame in want]


async def test_a_node_of_the_release_before_reads_what_new_ones_wrote(book: Book) -> None:
    story, transitions = await carried(book)
    for one in transitions:
        await book.lane.commit([one])
    found = await book.pool.fetch(
        "SELECT seq, event_type, payload, (extract(epoch FROM created_at) * 1000)::bigint AS at_ms"
        " FROM workflow_run_events WHERE run_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        *(story.run.id, 2, 4),
    )
    wanted = [(row.seq, row.event_type, row.payload, one.at) for one in transitions for row in one.events]
    assert [tuple(row) for row in found] == wanted[2:6]


async def test_two_commits_from_the_same_state_collide_whatever_the_fence_says(book: Book) -> None:
    story = await book.open(step("a"))
    (first,) = book.told(story)
    await book.lane.commit([first])
    before = await book.rows("workflow_run_pages")
    await book.pool.execute("UPDATE workflow_runs SET last_seq = $1", first.expected_seq)
    assert set((await book.lane.commit([first])).committed) == {story.run.id}, "it is in the log"
    assert await book.rows("workflow_run_pages") == before


# --- how it is read -------------------------------------------------------------------------------------------------


def _scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The scans of tables in a plan."""
    if "Relation Name" in plan:
        yield plan
    for part in plan.get("Plans", ()):
        yield from _scans(part)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_a_replay_from_the_middle_reads_a_range_of_one_partition_by_index(pool: Pool, mode: str) -> None:
    """Custom plans prune while planning, generic ones while starting: both leave one partition of each kind."""
    run_id = uuid_at(month(0), 7)
    for other in range(5):
        await pool.execute(FILL, uuid_at(month(0), other + 5), 400)
        await pool.execute(
            "INSERT INTO workflow_run_single_events"
            " SELECT $1, g, 'tool.log', '{}', now() FROM generate_series(1, 2000) AS g",
            uuid_at(month(0), other + 15),
        )
    await pool.execute("ANALYZE")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        await connection.execute(f"PREPARE replay (uuid, bigint, bigint) AS {EVENTS}")
        asked = f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE replay ('{run_id}', 1003, 1102)"
        plan = orjson.loads(await connection.fetchval(asked))[0]["Plan"]
        await connection.execute("DEALLOCATE replay")
    scans = list(_scans(plan))
    names = {f"workflow_run_{kind}_{month(0):%Y_%m}" for kind in ("pages", "single_events")}
    assert {scan["Relation Name"] for scan in scans} == names
    assert {scan["Node Type"] for scan in scans} <= {"Index Scan", "Index Only Scan"}
    read = sum(scan["Actual Rows"] * scan["Actual Loops"] for scan in scans)
    assert read == 1 + 21, "where to begin, and the pages that have these hundred events"


# --- the way to it and back ------------------------------------------------------------------------------------------


async def test_the_way_back_and_forward_keeps_every_event(book: Book, database: str) -> None:
    story, transitions = await carried(book)
    late = uuid_at(month(5))
    await write_as_old(book.pool, transitions[0])
    for one in transitions[1:3]:
        await book.lane.commit([one])
    await book.lane.checkpoint()
    assert await Claims(book.pool).ensure_partitions(5) == 2
    await book.pool.execute(FILL, late, 2)
    imported = uuid4()
    await book.pool.execute(FILL, imported, 1)
    before = [await rows(book, run_id) for run_id in (story.run.id, late, imported)]
    assert [len(found) for found in before[1:]] == [10, 5]

    await book.pool.expire_connections()
    back(database)
    assert [await rows(book, run_id) for run_id in (story.run.id, late, imported)] == before
    where = "SELECT DISTINCT tableoid::regclass::text FROM workflow_run_events WHERE run_id = $1"
    assert await book.pool.fetchval(where, late) == f"workflow_run_events_{month(5):%Y_%m}"
    assert await book.pool.fetchval(where, imported) == "workflow_run_events_default"
    assert await Claims(book.pool).ensure_partitions(6) == 1
    with pytest.raises(asyncpg.CheckViolationError, match="append-only"):
        await book.pool.execute("DELETE FROM workflow_run_events")
    await write_as_old(book.pool, transitions[3])

    forward(database)
    for one in transitions[4:]:
        await book.lane.commit([one])
    page = await EventLog(book.pool).page(story.run.id, after_seq=0, limit=1000)
    assert page.frames == b"".join(frames(transitions))
    assert await rows(book, late) == before[1]


async def test_a_page_that_is_being_written_is_not_lost_on_the_way_back(
    book: Book, database: str, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    run_id = uuid4()
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = $1)"
    async with other.transaction():
        await other.execute(FILL, run_id, 1)
        moving = asyncio.create_task(asyncio.to_thread(back, database))
        name = await other.fetchval("SELECT current_database()")
        await eventually(lambda: book.pool.fetchval(waiting, name), what="the migration being kept waiting")
    await moving
    assert len(await rows(book, run_id)) == 5


async def test_a_node_goes_on_with_what_it_has_prepared_while_the_database_is_migrated(
    book: Book, database: str, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    story, transitions = await carried(book)
    await book.pool.expire_connections()
    back(database)
    await write_as_old(other, *transitions[:2])
    forward(database)
    await write_as_old(other, *transitions[2:])
    assert await other.fetchval("SELECT ensure_event_partitions(3)") == 0
    page = await EventLog(book.pool).page(story.run.id, after_seq=0, limit=1000)
    assert page.frames == b"".join(frames(transitions))


async def test_a_role_that_wrote_the_log_still_may_as_soon_as_it_is_migrated(
    admin: psycopg.Connection, book: Book, database: str, other: asyncpg.Connection[asyncpg.Record]
) -> None:
    back(database)
    admin.execute('CREATE ROLE "old node"')
    try:
        await other.execute('GRANT SELECT, INSERT ON workflow_run_events TO "old node"')
        forward(database)
        await other.execute('SET ROLE "old node"')
        await other.execute("INSERT INTO workflow_run_events VALUES ($1, 1, 'tool.log', '{}', now())", uuid4())
        await other.execute(FILL, uuid4(), 1)
        assert await other.fetchval("SELECT count(*) FROM workflow_run_events") == 6
        for table in ("workflow_run_events", "workflow_run_pages", "workflow_run_single_events"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await other.execute(f"DELETE FROM {table}")
    finally:
        await other.execute("RESET ROLE")
        await other.execute('DROP OWNED BY "old node"')
        admin.execute('DROP ROLE "old node"')


async def test_a_month_that_may_be_dropped_is_found_as_the_documentation_says(book: Book) -> None:
    told = (Path(__file__).parents[2] / "docs/scaling.md").read_text().split("```sql\n")[1].split("```")[0]
    for moment, number in (("2026-11-01 00:00Z", 0), ("2026-12-01 00:00Z", 1)):
        assert moment in told
        told = told.replace(moment, month(number).isoformat())
    story, transitions = await carried(book)
    found = []
    for one in transitions:
        await book.lane.commit([one])
        found.append([row["id"] for row in await book.pool.fetch(told)])
    assert found == [[story.run.id]] * (len(transitions) - 1) + [[]]
