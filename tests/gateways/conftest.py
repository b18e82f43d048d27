"""What the tests of several Gateways share: a world of two Gateways, with or without a Redis of theirs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from daemon.dev.embedded import EmbeddedValkey
from tests.gateways.world import World, world


@pytest.fixture
def open_world(database: str, redis_url: str, redis_prefix: str) -> Callable[..., AbstractAsyncContextManager[World]]:
    """``open_world(**settings)``: two Gateways without Redis."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[World]:
        async with world(database, redis_url, redis_prefix, None, **settings) as made:
            yield made

    return opened


@pytest.fixture
async def plain(open_world: Callable[..., AbstractAsyncContextManager[World]]) -> AsyncIterator[World]:
    """Two Gateways without Redis, each with its own memory of results, and one node."""
    async with open_world() as made:
        yield made


@pytest.fixture
async def shared(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[World]:
    """Two Gateways over a Valkey of their own, which the test may flush, stop and start, and one node."""
    with EmbeddedValkey() as server:
        async with world(database, redis_url, redis_prefix, server) as made:
            yield made
