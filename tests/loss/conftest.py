"""What the tests of this folder share: the runtime's rig, over the servers of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.runtime.harness import Rig
from tests.runtime.harness import rig as opened_rig


@pytest.fixture
async def rig(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Rig]:
    """Everything but the nodes, which the test starts."""
    async with opened_rig(database, redis_url, redis_prefix) as opened:
        yield opened
