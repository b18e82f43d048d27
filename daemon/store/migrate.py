"""Applies ``schema/`` with yoyo. Used by ``runwarden migrate``, ``dev`` and the tests' template database.

yoyo takes its own lock, so several nodes may call this at once. It speaks through psycopg; the hot path never does.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from daemon.config import mask
from daemon.errors import SetupError

if TYPE_CHECKING:
    import psycopg

CONNECT_TIMEOUT_S = 5
"""libpq's own default is to wait for ever."""


def migrate(url: str, *, rollback_all: bool = False) -> list[str]:
    """Apply what is missing (or roll everything back); answers the ids moved. Blocks; not for the event loop.

    Raises SetupError when Postgres does not answer or refuses a migration.
    """
    import psycopg

    backend = _backend(url)
    try:
        migrations = _migrations()
        with backend.lock():
            chosen = backend.to_rollback(migrations) if rollback_all else backend.to_apply(migrations)
            moved = [migration.id for migration in chosen]
            (backend.rollback_migrations if rollback_all else backend.apply_migrations)(chosen)
    except psycopg.Error as fault:
        raise SetupError(f"A migration failed at {mask(url)}: {str(fault).strip()}") from None
    finally:
        backend.connection.close()
    return moved


def missing(url: str) -> list[str]:
    """The ids of migrations that this database has not seen. Raises SetupError as ``migrate``.

    yoyo itself is not asked: whatever it is asked, it tries to make tables first, and a node's role may make none.
    """
    import psycopg

    try:
        with connect(url) as connection:
            ((begun,),) = connection.execute("SELECT to_regclass('_yoyo_migration') IS NOT NULL").fetchall()
            seen = connection.execute("SELECT migration_id FROM _yoyo_migration").fetchall() if begun else []
    except psycopg.errors.InsufficientPrivilege as fault:
        raise SetupError(f"{str(fault).strip()}: run 'runwarden migrate --app-role' for the nodes' role.") from None
    except psycopg.Error as fault:
        raise SetupError(f"Postgres at {mask(url)} does not say which migrations it has: {fault}") from None
    applied = {migration_id for (migration_id,) in seen}
    return [one.id for one in _migrations() if one.id not in applied]


def connect(url: str) -> psycopg.Connection:
    """A connection for work like this, in autocommit. Raises SetupError when Postgres does not answer in time."""
    import psycopg

    try:
        asked = psycopg.conninfo.make_conninfo(url, **_timeout(url))
        return psycopg.connect(asked, autocommit=True, prepare_threshold=None)
    except psycopg.OperationalError as fault:
        raise SetupError(f"Postgres at {mask(url)} does not answer: {str(fault).strip()}") from None


def _migrations() -> Any:
    """The scripts of ``schema/``. yoyo would also take its ``__init__.py`` for a migration."""
    from yoyo import read_migrations

    found = read_migrations(str(resources.files("schema")))
    return found.replace([one for one in found if one.path.endswith(".sql")])


def _backend(url: str) -> Any:
    """yoyo's connection. Raises SetupError when Postgres does not answer within ``CONNECT_TIMEOUT_S``."""
    import psycopg
    from yoyo import get_backend

    try:
        backend = get_backend(_yoyo_url(url))
    except psycopg.OperationalError as fault:
        raise SetupError(f"Postgres at {mask(url)} does not answer: {str(fault).strip()}") from None
    backend.connection.prepare_threshold = None  # behind a pooler a prepared name may mean another statement
    return backend


def _yoyo_url(url: str) -> str:
    """The URL as yoyo wants it, with libpq's ``connect_timeout`` unless it has one."""
    asked = urlsplit(url)
    query = "&".join([asked.query, *(f"{name}={value}" for name, value in _timeout(url).items())])
    return asked._replace(scheme="postgresql+psycopg", query=query.lstrip("&")).geturl()


def _timeout(url: str) -> dict[str, int]:
    """What is to be added to the URL."""
    return {} if "connect_timeout=" in urlsplit(url).query else {"connect_timeout": CONNECT_TIMEOUT_S}
