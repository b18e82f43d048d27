"""Connections to Postgres: opened with a bounded wait, errors turned into the tree's. For ``node`` and this room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from daemon.config import mask
from daemon.errors import SetupError, StoreUnavailable
from daemon.telemetry import log

if TYPE_CHECKING:
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Pool = asyncpg.Pool
    Connection = asyncpg.Connection

GONE = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InternalClientError,  # the server said that it ends this session, and has not closed the connection yet
    asyncpg.PostgresSystemError,
    asyncpg.InternalServerError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)
"""What asyncpg raises when the server is away, or cannot work, for now: shut down, starting, out of memory, disk or
connections, a disk that fails, a primary that has become a standby."""

REFUSED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.ProgramLimitExceededError)
"""What asyncpg raises when Postgres can never accept what it was told."""

CONTENDED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""What asyncpg raises when another transaction was first; the same may be tried again at once."""

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
OLDEST_SERVER = (15, 0)


def session(name: str, *, pooled: bool) -> dict[str, Any]:
    """How every connection is opened: with bounded waits, and a name that ``pg_stat_activity`` shows.

    ``pooled``: behind a pooler in transaction mode nothing may outlive a transaction, prepared statements included. The
    store uses no other feature of sessions: no LISTEN, no advisory lock but within a transaction, no temporary table.
    """
    kept: dict[str, Any] = {"statement_cache_size": 0} if pooled else {}
    return kept | {
        "timeout": CONNECT_TIMEOUT_S,
        "command_timeout": COMMAND_TIMEOUT_S,  # a server that vanished without a word is not waited for for ever
        "server_settings": {"application_name": name},
    }


async def open_pool(url: str, *, size: int, patience_s: float, pooled: bool = False) -> Pool:
    """A pool of at most ``size`` connections, once Postgres answers.

    Raises SetupError, the URL in it with its password masked, when that takes longer than ``patience_s``, when the
    server is older than PostgreSQL 15, or when its transactions are isolated otherwise than by read committed.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            pool = await asyncpg.create_pool(
                url, min_size=1, max_size=size, reset=_nothing_to_reset, **session("runwarden", pooled=pooled)
            )
        except GONE as fault:
            if time.monotonic() >= until:
                raise SetupError(f"Postgres at {mask(url)} does not answer: {plain(fault)}") from None
            log.info("waiting for Postgres", url=mask(url), fault=plain(fault))
            await asyncio.sleep(min(0.5, patience_s / 4))
        except (asyncpg.PostgresError, ValueError) as fault:
            raise SetupError(f"Postgres at {mask(url)} refuses: {plain(fault)}") from None
        else:
            await _check_server(pool, url)
            return pool


async def warm(pool: Pool, statement: str, *arguments: object) -> None:
    """See that half of the pool's connections are open and know a statement, before somebody waits for that.

    A new one costs whoever needs it first some 30 ms: a process of the server's, and what the types of our rows are
    (100 approvals a second after a quiet hour: p99 118 ms without, 44 ms with). That Postgres is away is no fault here:
    they are opened when they are needed.
    """

    async def one() -> None:
        try:
            async with reading(pool) as connection:
                await connection.fetch(statement, *arguments)
        except StoreUnavailable as fault:
            log.info("a connection is opened later", fault=plain(fault))

    await asyncio.gather(*(one() for _ in range(pool.get_max_size() // 2)))  # each takes one of its own at once


async def _nothing_to_reset(_: Connection) -> None:
    """What asyncpg does as a connection is given back, beside ending an open transaction.

    Its own way is four statements that free what sessions may hold, a round trip after every use; see ``session``.
    """


async def _check_server(pool: Pool, url: str) -> None:
    """A claim that has waited for an append must see it, so each statement needs a snapshot of its own."""
    async with pool.acquire() as connection:
        version = connection.get_server_version()
        isolation = await connection.fetchval("SHOW transaction_isolation")
    if (version.major, version.minor) < OLDEST_SERVER:
        await pool.close()
        raise SetupError(f"Postgres at {mask(url)} is version {version.major}; Runwarden needs 15 or newer.")
    if isolation not in ("read committed", "read uncommitted"):
        await pool.close()
        raise SetupError(
            f"Transactions at {mask(url)} begin as {isolation}; Runwarden needs read committed: "
            "ALTER DATABASE … (or ALTER ROLE …) SET default_transaction_isolation = 'read committed'."
        )


def plain(fault: BaseException) -> str:
    """What went wrong, never empty."""
    return str(fault).strip() or type(fault).__name__


@asynccontextmanager
async def reading(pool: Pool) -> AsyncIterator[Connection]:
    """A connection for one piece of work.

    Raises StoreUnavailable when the server is away, or says what nobody here has heard before: both pass, and no loop
    may end over it. What it refuses for what it was told (``REFUSED``) is the caller's, and raised as it is.
    """
    try:
        async with pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection  # type: ignore[misc] # asyncpg's proxy stands in for a Connection
    except REFUSED:
        raise
    except (*GONE, asyncpg.PostgresError) as fault:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # giving a cancelled query's connection back may fail in its turn;
            raise asyncio.CancelledError from fault  # that must not swallow the cancellation
        if isinstance(fault, asyncpg.ReadOnlySQLTransactionError):
            await pool.expire_connections()  # they lead to a standby by now; new ones ask who the primary is
        if not isinstance(fault, (*GONE, *CONTENDED)):
            log.error("Postgres says what is not understood", fault=plain(fault))
        raise StoreUnavailable(f"Postgres does not answer ({plain(fault)}); nothing was lost, try again.") from fault
