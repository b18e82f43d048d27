"""A cluster for one test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.cluster.harness import Cluster, cluster


@pytest.fixture
async def several(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Cluster]:
    """Nodes are started by the test."""
    async with cluster(database, redis_url, redis_prefix) as opened:
        yield opened
