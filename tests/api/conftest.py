"""A fresh stack for one test, and one shared by all tests of a module that leave nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import asyncpg
import psycopg
import pytest
import pytest_asyncio

from daemon.api import holds
from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from tests.api.case import Case
from tests.api.harness import Stack, stack
from tests.api.people import introduce
from tests.conftest import STRICT_TEMPLATE, url_of

AGENT_SECRET = "the secret of the agents of the tests, long enough"


@pytest.fixture
async def live(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    """A node of this test's own."""
    async with stack(database, redis_url, redis_prefix) as opened:
        yield opened


@pytest.fixture
async def strict(strict_database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Stack]:
    """A node of this test's own where no agent belongs to anybody, and callers of every kind (``people``)."""
    async with stack(strict_database, redis_url, redis_prefix, agent_token_secret=AGENT_SECRET) as opened:
        yield introduce(opened)


@pytest.fixture(scope="module")
def module_database(postgres: EmbeddedPostgres, admin: psycopg.Connection, template: str) -> Iterator[str]:
    """The URL of a migrated, empty database for one module's tests together."""
    name = "shared_by_a_module"
    admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.url.replace("@/postgres?", f"@/{name}?")
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def strict_module_database(postgres: EmbeddedPostgres, admin: psycopg.Connection, template: str) -> Iterator[str]:
    """As ``module_database``, but no agent belongs to anybody."""
    name = "strict_of_a_module"
    admin.execute(f"CREATE DATABASE {name} TEMPLATE {STRICT_TEMPLATE}")
    yield url_of(postgres, name)
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(module_database: str, valkey: EmbeddedValkey) -> AsyncIterator[Stack]:
    """One node for a module; its tests say ``pytestmark = pytest.mark.asyncio(loop_scope="module")``."""
    async with stack(module_database, valkey.url, "shared", body_limit_bytes=262_144) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def books(module_database: str) -> AsyncIterator[asyncpg.Connection]:
    """The database behind ``shared``, to count what is stored."""
    connection = await asyncpg.connect(module_database)
    yield connection
    await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict_shared(strict_module_database: str, valkey: EmbeddedValkey) -> AsyncIterator[Stack]:
    """As ``shared``, where no agent belongs to anybody."""
    async with stack(strict_module_database, valkey.url, "strict") as opened:
        yield introduce(opened)


@pytest_asyncio.fixture(loop_scope="module")
async def case(strict_shared: Stack) -> Case:
    """A case with an agent of its own, on the node of a module."""
    return await Case(strict_shared).open()


@pytest.fixture(scope="module")
def hasty_holds() -> Iterator[None]:
    """Holds are answered as soon as they are on disk, not when they are certain: where they are not what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holds, "CERTAIN_S", 0.0)
        yield
