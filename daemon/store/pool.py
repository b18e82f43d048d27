"""Connections to Postgres: opened with a bounded wait, errors turned into the tree's. For ``node`` and this room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

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
)
"""What asyncpg raises when the server is away, or cannot work, for now."""

CONTENDED = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""What asyncpg raises when another transaction was first; the same may be tried again at once."""

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
OLDEST_SERVER = (15, 0)


async def open_pool(url: str, *, size: int, patience_s: float) -> Pool:
    """A pool of at most ``size`` connections, once Postgres answers.

    Raises SetupError, the URL in it with its password masked, when that takes longer than ``patience_s`` or when the
    server is older than PostgreSQL 15.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=size,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings={"application_name": "runwarden"},
            )
        except GONE as fault:
            if time.monotonic() >= until:
                raise SetupError(f"Postgres at {mask(url)} does not answer: {_plain(fault)}") from None
            log.info("waiting for Postgres", url=mask(url), fault=_plain(fault))
            await asyncio.sleep(min(0.5, patience_s / 4))
        except (asyncpg.PostgresError, ValueError) as fault:
            raise SetupError(f"Postgres at {mask(url)} refuses: {_plain(fault)}") from None
        else:
            await _check_version(pool, url)
            return pool


async def _check_version(pool: Pool, url: str) -> None:
    async with pool.acquire() as connection:
        version = connection.get_server_version()
    if (version.major, version.minor) < OLDEST_SERVER:
        await pool.close()
        raise SetupError(f"Postgres at {mask(url)} is version {version.major}; Runwarden needs 15 or newer.")


def _plain(fault: BaseException) -> str:
    return str(fault).strip() or type(fault).__name__


@asynccontextmanager
async def reading(pool: Pool) -> AsyncIterator[Connection]:
    """A connection for one piece of work. Raises StoreUnavailable when the server is away."""
    try:
        async with pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection  # type: ignore[misc] # asyncpg's proxy stands in for a Connection
    except (*GONE, *CONTENDED) as fault:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # giving a cancelled query's connection back may fail in its turn;
            raise asyncio.CancelledError from fault  # that must not swallow the cancellation
        raise StoreUnavailable(f"Postgres does not answer ({_plain(fault)}); nothing was lost, try again.") from fault
