"""What the database itself enforces, whoever writes: the log's key and partitions, terminal states, the way back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import psycopg
import pytest

from daemon.machine.commands import RunId
from daemon.store.claims import Claims
from daemon.store.log import EventLog
from daemon.store.migrate import migrate, missing
from daemon.store.pool import Pool, open_pool
from tests.machine.scenario import step
from tests.patience import eventually
from tests.store.conftest import Book

INSERT = "INSERT INTO workflow_run_pages VALUES ($1, $2, '[[\"tool.log\",{}]]', now())"


def uuid_at(moment: datetime, low: int = 0) -> UUID:
    """A UUIDv7 of a moment; ``low`` are its lower 80 bits."""
    return UUID(int=(int(moment.timestamp() * 1000) << 80) | low)


def month(number: int) -> datetime:
    """The first moment of a month, UTC, ``number`` months from this one."""
    now = datetime.now(UTC)
    index = now.year * 12 + now.month - 1 + number
    return datetime(index // 12, index % 12 + 1, 1, tzinfo=UTC)


async def partition_of(pool: Pool, run_id: UUID) -> str:
    await pool.execute(INSERT, run_id, 1)
    return str(await pool.fetchval("SELECT tableoid::regclass::text FROM workflow_run_pages WHERE run_id = $1", run_id))


async def test_the_events_of_a_run_are_dense_from_one(book: Book) -> None:
    story = await book.open(step("a", goes_on=True), step("b"))
    story.fail()
    story.succeed()
    await book.write(story)
    assert await book.seqs(story.run.id) == list(range(1, story.run.last_seq + 1))


async def test_a_seq_of_a_run_exists_once(pool: Pool) -> None:
    run_id = uuid4()
    await pool.execute(INSERT, run_id, 1)
    with pytest.raises(asyncpg.UniqueViolationError):
        await pool.execute(INSERT, run_id, 1)


REWRITES = ["UPDATE {} SET run_id = NULL", "DELETE FROM {}"]


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize("table", ["workflow_run_pages", "workflow_run_single_events", "workflow_run_events"])
async def test_the_log_is_append_only(book: Book, table: str, rewrite: str) -> None:
    story = await book.open()
    await book.write(story)
    await book.pool.execute("INSERT INTO workflow_run_events VALUES ($1, 99, 'tool.log', '{}', now())", story.run.id)
    before = await book.rows("workflow_run_events")
    with pytest.raises(asyncpg.CheckViolationError, match="append-only"):
        await book.pool.execute(rewrite.format(table))
    assert await book.rows("workflow_run_events") == before


@pytest.mark.parametrize("number", range(4))
async def test_a_month_is_a_partition_to_the_millisecond(pool: Pool, number: int) -> None:
    first, after = month(number), month(number + 1)
    name = f"workflow_run_pages_{first:%Y_%m}"
    assert await partition_of(pool, uuid_at(first)) == name
    assert await partition_of(pool, UUID(int=uuid_at(after).int - 1)) == name


async def test_what_is_no_uuid7_of_these_months_goes_to_the_default_partition(pool: Pool) -> None:
    for run_id in (uuid4(), uuid_at(month(4)), UUID(int=uuid_at(month(0)).int - 1)):
        assert await partition_of(pool, run_id) == "workflow_run_pages_default"


async def test_partitions_are_made_ahead_and_only_once(pool: Pool) -> None:
    claims = Claims(pool)
    assert await claims.ensure_partitions(3) == 0
    assert await claims.ensure_partitions(5) == 2
    assert await claims.ensure_partitions(5) == 0
    assert await partition_of(pool, uuid_at(month(5))) == f"workflow_run_pages_{month(5):%Y_%m}"


async def test_a_month_that_has_rows_already_stops_nobody(pool: Pool) -> None:
    """A run created where the clock was far ahead, or brought from v0 under such an id, wrote to DEFAULT."""
    early = uuid_at(month(4))
    assert await partition_of(pool, early) == "workflow_run_pages_default"
    assert await Claims(pool).ensure_partitions(4) == 0
    assert await partition_of(pool, uuid_at(month(3))) == f"workflow_run_pages_{month(3):%Y_%m}"


async def test_a_month_drops_when_its_runs_are_gone(pool: Pool) -> None:
    await partition_of(pool, uuid_at(month(0)))
    await pool.execute(f"DROP TABLE workflow_run_pages_{month(0):%Y_%m}")
    assert await pool.fetchval("SELECT count(*) FROM workflow_run_events") == 0


async def test_a_replay_touches_one_partition_of_each_kind(book: Book, database: str) -> None:
    story = await book.open()
    await book.write(story)
    single = await open_pool(database, size=2, patience_s=5)
    before = await _scans(book.pool)
    page = await EventLog(single).page(story.run.id, after_seq=0, limit=10)
    await single.close()  # a session that ends has reported what it touched
    assert page.count == story.run.last_seq

    async def touched() -> list[str]:
        return [name for name, scans in (await _scans(book.pool)).items() if scans > before[name]]

    kinds = ("pages", "single_events")
    assert sorted(await eventually(touched)) == [f"workflow_run_{kind}_{month(0):%Y_%m}" for kind in kinds]


async def _scans(pool: Pool) -> dict[str, int]:
    found = await pool.fetch(
        "SELECT relname, seq_scan + idx_scan AS scans FROM pg_stat_user_tables"
        " WHERE relname ~ '^workflow_run_(pages|single_events)_'"
    )
    return {row["relname"]: row["scans"] for row in found}


@pytest.mark.parametrize("status", ["completed", "failed", "canceled"])
async def test_terminal_is_for_ever(book: Book, status: str) -> None:
    story = await book.open()
    await book.pool.execute("UPDATE workflow_runs SET status = $1", status)
    for other in ("running", "paused", "completed", "failed", "canceled"):
        if other != status:
            with pytest.raises(asyncpg.CheckViolationError, match="stays so"):
                await book.pool.execute("UPDATE workflow_runs SET status = $1", other)
    await book.pool.execute("UPDATE workflow_runs SET last_seq = last_seq + 1")
    (row,) = await book.rows("workflow_runs", story.run.id)
    assert row["status"] == status


async def test_a_commit_that_would_wake_the_dead_is_poison_to_itself_alone(book: Book) -> None:
    dead, alive = await book.open(), await book.open()
    await book.pool.execute("UPDATE workflow_runs SET status = 'canceled' WHERE id = $1", dead.run.id)
    outcomes = await book.lane.commit([*book.told(dead), *book.told(alive)])
    assert set(outcomes.poisoned) == {RunId(dead.run.id)}
    assert set(outcomes.committed) == {RunId(alive.run.id)}


async def test_the_hot_row_is_small(book: Book) -> None:
    story = await book.open(user="u" * 36)
    await book.write(story)
    assert await book.pool.fetchval("SELECT pg_column_size(r) FROM workflow_runs r") < 300


# --- migrations ----------------------------------------------------------------------------------------------------


def _shape(url: str) -> dict[str, list[Any]]:
    """Everything the migrations make, as the catalogue describes it."""
    questions = {
        "columns": "SELECT table_name, column_name, data_type, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = 'public'",
        "indexes": "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "constraints": "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace",
        "functions": "SELECT p.oid::regprocedure::text FROM pg_proc p LEFT JOIN pg_depend d"
        " ON d.objid = p.oid AND d.deptype = 'e' WHERE pronamespace = 'public'::regnamespace AND d.objid IS NULL",
        "triggers": "SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    }
    with psycopg.connect(url) as connection:
        found = {name: connection.execute(question).fetchall() for name, question in questions.items()}
    ours = {
        name: [row for row in rows if "yoyo" not in str(row) and "pg_stat" not in str(row)]
        for name, rows in found.items()
    }
    return {name: sorted(map(str, rows)) for name, rows in ours.items()}


def test_every_migration_rolls_back_to_nothing_and_forward_to_the_same(strict_database: str) -> None:
    before = _shape(strict_database)
    assert before["columns"]
    back = migrate(strict_database, rollback_all=True)
    assert not any(_shape(strict_database).values())
    assert missing(strict_database) == back[::-1]
    assert migrate(strict_database) == back[::-1]
    assert _shape(strict_database) == before
    assert missing(strict_database) == []
    assert migrate(strict_database) == []


def test_nodes_that_migrate_at_once_do_it_once(strict_database: str) -> None:
    before = _shape(strict_database)
    every = migrate(strict_database, rollback_all=True)[::-1]
    with ThreadPoolExecutor(3) as threads:
        moved = list(threads.map(migrate, [strict_database] * 3))
    assert sorted(moved, key=len) == [[], [], every]
    assert _shape(strict_database) == before
