"""Postgres says something unexpected: what passes is waited out, for ever if need be; no lane and no loop ends over it.

A real server raises each of them, from a trigger, for as long as a row says so.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from daemon import telemetry
from daemon.errors import SetupError, StoreUnavailable
from daemon.store.migrate import CONNECT_TIMEOUT_S, missing
from daemon.store.pool import Pool, reading
from tests.patience import eventually
from tests.store.conftest import Book

PASSING = {
    "disk full": "53100",
    "out of memory": "53200",
    "too many connections": "53300",
    "a standby by now": "25006",
    "shut down by an administrator": "57P01",
    "crashed": "57P02",
    "starting": "57P03",
    "I/O error": "58030",
    "internal error": "XX000",
    "not in the state for it": "55000",
    "a lock not available": "55P03",
    "no permission, for now": "42501",
    "a class that nobody knows": "ZZ999",
}

TRIGGER = """
CREATE TABLE weather (code text);
CREATE FUNCTION storm() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE found text := (SELECT code FROM weather LIMIT 1);
BEGIN
    IF found IS NOT NULL THEN RAISE EXCEPTION 'a storm' USING ERRCODE = found; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER storm BEFORE UPDATE ON workflow_runs FOR EACH ROW EXECUTE FUNCTION storm();
"""


def repeats() -> float:
    return telemetry.registry.get_sample_value("runwarden_commit_repeats_total") or 0.0


@asynccontextmanager
async def storm(book: Book, code: str) -> AsyncIterator[None]:
    """Each change of a run fails so, until the block is over."""
    await book.pool.execute("INSERT INTO weather VALUES ($1)", code)
    yield
    await book.pool.execute("DELETE FROM weather")


async def test_what_passes_is_waited_out_by_the_journal(book: Book) -> None:
    await book.pool.execute(TRIGGER)
    for fault, code in PASSING.items():
        story = await book.open()
        async with storm(book, code):
            before = repeats()
            writing = asyncio.create_task(book.write(story))
            await eventually(lambda before=before: repeats() >= before + 2, what=f"{fault}, tried again")
            assert not writing.done(), fault
        assert set((await writing).committed) == {story.run.id}, fault
        assert await book.seqs(story.run.id) == list(range(1, story.run.last_seq + 1)), fault


async def test_what_passes_is_told_as_unavailable_to_everybody_else(book: Book) -> None:
    await book.pool.execute(TRIGGER)
    for code in PASSING.values():
        story = await book.open()
        async with storm(book, code):
            with pytest.raises(StoreUnavailable):
                await book.claims.claim({story.run.id: "another"})
        assert (await book.claims.claim({story.run.id: "another"}))[0]


async def test_what_is_refused_for_what_it_says_is_the_caller_s(pool: Pool) -> None:
    with pytest.raises(asyncpg.DataError):
        async with reading(pool) as connection:
            await connection.fetchval("SELECT 1 / 0")


async def test_connections_to_a_demoted_server_are_not_used_again(pool: Pool) -> None:
    """They would lead to the standby for ever, while new ones find the primary."""
    before = await backend(pool)
    assert await backend(pool) == before
    with pytest.raises(StoreUnavailable):
        await write_as_a_standby(pool)
    assert await backend(pool) != before


async def backend(pool: Pool) -> int:
    """Which server process the pool's next connection leads to."""
    async with reading(pool) as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def write_as_a_standby(pool: Pool) -> None:
    async with reading(pool) as connection:
        await connection.execute("SET default_transaction_read_only = on")
        await connection.execute("UPDATE workflow_runs SET owner = NULL")


async def test_a_server_that_accepts_and_says_nothing_does_not_hold_a_start_up_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with asyncio.timeout(4 * CONNECT_TIMEOUT_S):
            with pytest.raises(SetupError, match="does not answer"):
                await asyncio.to_thread(missing, f"postgresql://me@127.0.0.1:{port}/x")
