"""A part of the node that is cancelled ends, whatever the libraries below make of the cancellation.

asyncpg may answer it with an error of the connection that it gives back, and redis-py (before Python 3.12, through
``asyncio.wait_for``) with nothing at all. A loop that goes on after that would keep the node from ever stopping.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from daemon.fabric.client import speaking
from daemon.node import _fault_of
from daemon.store.pool import Pool, reading, warm
from tests.patience import PATIENCE_S, let_pass


async def _deaf(then: type[Exception] | None) -> None:
    """Waits for ever, and answers a cancellation as those libraries sometimes do."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        if then is not None:
            raise then("while it was given back") from None


async def assert_ends(loop: Callable[[], Awaitable[None]]) -> None:
    """The loop, for ever repeated, ends as cancelled when it is cancelled once."""

    async def forever() -> None:
        while True:
            await loop()

    task = asyncio.create_task(forever())
    await asyncio.sleep(0)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
    assert task in done, "it goes on"
    assert task.cancelled()


@pytest.mark.parametrize("then", [None, ConnectionError])
async def test_speaking_to_redis_never_swallows_a_cancellation(then: type[Exception] | None) -> None:
    async def loop() -> None:
        with speaking():
            await _deaf(then)

    await assert_ends(loop)


async def test_reading_from_postgres_never_swallows_a_cancellation(pool: Pool) -> None:
    entered = asyncio.Event()

    async def loop() -> None:
        async with reading(pool):
            entered.set()
            await _deaf(asyncpg.QueryCanceledError)

    task = asyncio.create_task(loop())
    await entered.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE_S)
    assert task.cancelled()


@pytest.mark.parametrize("at_s", [0.0, 0.001, 0.003, 0.01, 0.03])
async def test_warming_the_pool_never_swallows_a_cancellation(pool: Pool, at_s: float) -> None:
    """At whatever moment it comes: as connections are opened, asked, or given back."""

    async def forever() -> None:
        while True:
            await warm(pool, "SELECT pg_sleep(0.001)")

    task = asyncio.create_task(forever())
    await let_pass(at_s)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
    assert task in done, "it goes on"
    assert task.cancelled()


@pytest.mark.parametrize("then", [None, ConnectionError, asyncpg.QueryCanceledError])
async def test_the_probe_never_swallows_a_cancellation(then: type[Exception] | None) -> None:
    async def loop() -> None:
        await _fault_of(_deaf(then))

    await assert_ends(loop)
