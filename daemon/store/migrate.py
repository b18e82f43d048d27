"""Applies ``schema/`` with yoyo. Used by ``runwarden migrate``, ``dev`` and the tests' template database.

yoyo takes its own lock, so several nodes may call this at once. It speaks through psycopg; the hot path never does.
"""

from __future__ import annotations

import re
from importlib import resources

from daemon.config import mask
from daemon.errors import SetupError


def migrate(url: str, *, rollback_all: bool = False) -> list[str]:
    """Apply what is missing (or roll everything back); answers the ids moved. Blocks; not for the event loop.

    Raises SetupError when Postgres does not answer or refuses a migration.
    """
    import psycopg
    from yoyo import get_backend, read_migrations

    try:
        backend = get_backend(_yoyo_url(url))
    except psycopg.OperationalError as fault:
        raise SetupError(f"Postgres at {mask(url)} does not answer: {str(fault).strip()}") from None
    try:
        migrations = read_migrations(str(resources.files("schema")))
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
    """The ids of migrations that this database has not seen. Raises SetupError as ``migrate``."""
    import psycopg
    from yoyo import get_backend, read_migrations

    try:
        backend = get_backend(_yoyo_url(url))
    except psycopg.OperationalError as fault:
        raise SetupError(f"Postgres at {mask(url)} does not answer: {str(fault).strip()}") from None
    try:
        return [one.id for one in backend.to_apply(read_migrations(str(resources.files("schema"))))]
    finally:
        backend.connection.close()


def _yoyo_url(url: str) -> str:
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
