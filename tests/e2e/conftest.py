"""One node at a time as a real process, killed and started again on the same port, over servers that stay."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.cluster.harness import Cluster, cluster


@pytest.fixture
async def machine(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Cluster]:
    """Postgres, Valkey and the Gateway of a machine on which the test starts its node."""
    async with cluster(database, redis_url, redis_prefix) as opened:
        yield opened
