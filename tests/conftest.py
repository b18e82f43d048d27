"""What the tests of several rooms share: a real Postgres, a real Valkey, and a migrated database for each test.

The servers are started once a process (pytest-xdist: once a worker) and only when a test asks for them. Nothing here
stands in for a room of ours. Tests run on uvloop, as production does; a room that wants more loops says so itself.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest
import redis
import uvloop
from hypothesis import HealthCheck, settings

from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from daemon.fabric.client import Client, open_client
from daemon.fabric.keys import Keys
from daemon.store.migrate import migrate
from daemon.store.pool import Pool, open_pool
from tests.free_agents import FREE_AGENTS

TEMPLATE = "migrated"
STRICT_TEMPLATE = "strict"
MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 << 30
_numbers = count(1)


settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("searching", parent=settings.get_profile("steady"), derandomize=False)
settings.load_profile("steady")
"""By itself Hypothesis fails an example that took 0.2 s, as one does when the machine stalls, and looks at others each
time. A gate judges the same examples each time; ``--hypothesis-profile=searching`` goes on looking."""


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def servers_dir() -> Iterator[Path]:
    """A directory for servers' data, in memory where there is room: cloning databases is mostly making files.

    Not pytest's own: that is closed to the account PostgreSQL runs as under root.
    """
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES
    home = Path(tempfile.mkdtemp(prefix="runwarden-tests-", dir=MEMORY if roomy else None)).resolve()
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(servers_dir: Path) -> Iterator[EmbeddedPostgres]:
    """This process's PostgreSQL, which counts statements. Tests that stop or restart a server start their own."""
    with EmbeddedPostgres(servers_dir / "postgres", fast=True) as server:
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
            admin.execute("ALTER SYSTEM SET autovacuum = off")  # it would change plans and counts whenever it likes
        server.stop()
        server.start()
        yield server


@pytest.fixture(scope="session")
def admin(postgres: EmbeddedPostgres) -> Iterator[psycopg.Connection]:
    """A superuser's connection to the maintenance database, each statement committed by itself."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="session")
def template(postgres: EmbeddedPostgres, admin: psycopg.Connection) -> str:
    """The name of a migrated database to clone, whose agents are free; nobody may stay connected to it."""
    admin.execute(f"CREATE DATABASE {TEMPLATE}")
    url = url_of(postgres, TEMPLATE)
    migrate(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION pg_stat_statements")
    admin.execute(f"CREATE DATABASE {STRICT_TEMPLATE} TEMPLATE {TEMPLATE}")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FREE_AGENTS)
    return TEMPLATE


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    """This process's Valkey."""
    with EmbeddedValkey() as server:
        yield server


def url_of(server: EmbeddedPostgres, database: str) -> str:
    """Where to reach a database of a server."""
    return server.url.replace("@/postgres?", f"@/{database}?")


@pytest.fixture
def database(postgres: EmbeddedPostgres, admin: psycopg.Connection, template: str) -> Iterator[str]:
    """The URL of a migrated, empty database of this test's own."""
    name = f"test_{next(_numbers)}"
    admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield url_of(postgres, name)
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def strict_database(postgres: EmbeddedPostgres, admin: psycopg.Connection, template: str) -> Iterator[str]:
    """As ``database``, but no agent belongs to anybody: for tests of who may do what."""
    name = f"test_{next(_numbers)}"
    admin.execute(f"CREATE DATABASE {name} TEMPLATE {STRICT_TEMPLATE} STRATEGY file_copy")
    yield url_of(postgres, name)
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(valkey: EmbeddedValkey) -> Iterator[str]:
    """The URL of an empty Valkey."""
    with redis.Redis.from_url(valkey.url) as connection:
        connection.flushall()
        yield valkey.url


@pytest.fixture
def redis_prefix() -> str:
    """The prefix of this test's keys."""
    return f"t{next(_numbers)}"


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    """Connections to this test's database."""
    opened = await open_pool(database, size=6, patience_s=10)
    yield opened
    await opened.close()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Client]:
    """A client of this test's Valkey."""
    opened = await open_client(redis_url, patience_s=10)
    yield opened
    await opened.close()


@pytest.fixture
def keys(redis_prefix: str) -> Keys:
    """The names of this test's keys."""
    return Keys(redis_prefix)
