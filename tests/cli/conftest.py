"""Fixtures for the command line: directories that a server of root's may use, and databases that are not migrated."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from daemon.dev.embedded import EmbeddedPostgres
from tests.conftest import url_of

_numbers = count(1)


@pytest.fixture
def home(servers_dir: Path) -> Path:
    """An empty directory, and no git repository."""
    return Path(tempfile.mkdtemp(dir=servers_dir))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands set the log up for a process of their own; here they share this one."""
    root = logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, logging.getLogger("runwarden").level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("runwarden").setLevel(ours)


@pytest.fixture
def bare_database(postgres: EmbeddedPostgres, admin: psycopg.Connection) -> Iterator[str]:
    """The URL of a database without any migration."""
    name = f"bare_{next(_numbers)}"
    admin.execute(f"CREATE DATABASE {name}")
    yield url_of(postgres, name)
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
