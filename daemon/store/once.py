"""Requests that a client may repeat: an ``Idempotency-Key`` and the effect it stands for are one transaction.

Used by ``runs``, ``workflows``, ``commands`` and ``service_tokens``, which do the work inside ``writing``. Of two
requests with one key the second waits for the first one's transaction and then does nothing. A key is the user's and
the route's, for 24 hours; each new one throws a few old ones away, so the table needs no other upkeep.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from daemon.errors import Invalid
from daemon.store.pool import Connection, Pool, reading

_CLAIM = """
WITH old AS (
    DELETE FROM idempotency_keys WHERE ctid IN (
        SELECT ctid FROM idempotency_keys
        WHERE created_at < now() - interval '24 hours' AND (user_id, route, key) <> ($1, $2, $3)
        ORDER BY created_at LIMIT 20 FOR UPDATE SKIP LOCKED)
)
INSERT INTO idempotency_keys AS k (user_id, route, key, digest, made) VALUES ($1, $2, $3, $4, $5::text::json)
ON CONFLICT (user_id, route, key) DO UPDATE
    SET digest = excluded.digest, made = excluded.made, created_at = excluded.created_at
    WHERE k.created_at < now() - interval '24 hours'
RETURNING true
"""
_FIRST = "SELECT digest, made FROM idempotency_keys WHERE user_id = $1 AND route = $2 AND key = $3"
_FORGET = "DELETE FROM idempotency_keys WHERE user_id = $1 AND route = $2 AND key = $3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """A request with a key; ``made`` (JSON) is what it makes, should it be the first."""

    user_id: str
    route: str
    key: str
    digest: bytes
    made: Any


class Repeated(Exception):
    """The request was made before; ``made`` is what the first one made. Caught where the answer is given."""

    def __init__(self, made: Any) -> None:
        self.made = made
        super().__init__("this request was made before")


class KeyReused(Invalid):
    """This Idempotency-Key was used for another request within 24 hours: take a new key for each new request."""

    code = "idempotency_key_reused"


@asynccontextmanager
async def writing(pool: Pool, once: Once | None) -> AsyncIterator[Connection]:
    """A connection to write with; all or nothing together with the key. As ``reading`` when there is no key.

    Raises Repeated, or KeyReused for another request with the same key, before anything is written.
    """
    async with reading(pool) as connection:
        if once is None:
            yield connection
            return
        async with connection.transaction():
            scope = (once.user_id, once.route, once.key)
            while not await connection.fetchval(_CLAIM, *scope, once.digest, orjson.dumps(once.made).decode()):
                first = await connection.fetchrow(_FIRST, *scope)
                if first is None:
                    continue  # thrown away between the two statements
                if first["digest"] != once.digest:
                    raise KeyReused
                raise Repeated(orjson.loads(first["made"]))
            yield connection


async def forget(connection: Connection, once: Once | None) -> None:
    """The request had no effect after all: its key is free again. Inside ``writing``."""
    if once is not None:
        await connection.execute(_FORGET, once.user_id, once.route, once.key)
