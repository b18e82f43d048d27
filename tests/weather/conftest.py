"""A whole node, the dev Gateway and its ledger, for one test of bad weather."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.harness import stack
from tests.weather.outdoors import Outdoors


@pytest.fixture
async def out(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Outdoors]:
    """Fair weather at first, and at the end, so that nothing hangs."""
    async with stack(database, redis_url, redis_prefix) as opened:
        yield Outdoors(opened)
        opened.gateway.weather.change()
