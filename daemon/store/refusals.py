"""Attempts that were refused before anything was written, kept in the audit. Used by ``api``."""

from __future__ import annotations

from daemon.auth.caller import Origin
from daemon.store.audit import Deed, note
from daemon.store.pool import Pool, reading


class Refusals:
    """Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def note(self, origin: Origin, deed: Deed) -> None:
        """One line, of a transaction of its own: what was attempted has written nothing."""
        async with reading(self._pool) as connection:
            await note(connection, origin, deed)
