"""Service tokens at rest: made, found by digest, listed and revoked. The token itself is never here.

Used by ``api``. Each use asks here, so a revoked token is refused from that moment on; making and revoking leave a line
in the audit log in the same transaction. Whoever makes one throws away what ended long ago of the same user, so the
table needs no other upkeep; the audit keeps what it was.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from datetime import datetime
from uuid import UUID

import asyncpg

from daemon.auth.caller import Origin, Role
from daemon.errors import Conflict
from daemon.store.audit import Deed, note
from daemon.store.once import Once, writing
from daemon.store.pool import Pool, reading
from daemon.store.workflows import Place

MOST = 100
"""Service tokens of one user that are neither revoked nor expired."""
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('service tokens of ' || $1, 0))"
_LIVE = """
SELECT count(*) FROM service_tokens
WHERE user_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""
ENDED_MOST = 1000
"""Of one user that are kept though they have ended, the newest; and for 90 days at most."""
_THROW_AWAY = """
DELETE FROM service_tokens t USING (
    SELECT id, coalesce(revoked_at, expires_at) AS ended_at, row_number() OVER (ORDER BY made_at DESC, id DESC) AS place
    FROM service_tokens WHERE user_id = $1 AND (revoked_at IS NOT NULL OR expires_at <= now())
) AS over
WHERE t.id = over.id AND (over.ended_at < now() - interval '90 days' OR over.place > $2)
"""
_ADD = """
INSERT INTO service_tokens (id, digest, user_id, name, scopes, groups, made_by, expires_at)
VALUES ($1, $2, $3, $4, $5::text[], $6::text[], $7, $8) RETURNING *
"""
_BEARER = """
SELECT *, expires_at <= now() AS expired,
    last_used_at IS NULL OR last_used_at < now() - interval '1 minute' AS unseen
FROM service_tokens WHERE digest = $1
"""
_USED = """
UPDATE service_tokens SET last_used_at = now()
WHERE id = ANY($1::uuid[]) AND (last_used_at IS NULL OR last_used_at < now() - interval '1 minute')
"""
_GET = "SELECT * FROM service_tokens WHERE id = $1 AND ($2::text IS NULL OR user_id = $2)"
_LIST = """
SELECT * FROM service_tokens
WHERE ($1::text IS NULL OR user_id = $1) AND ($2::timestamptz IS NULL OR (made_at, id) < ($2, $3::uuid))
ORDER BY made_at DESC, id DESC LIMIT $4
"""
_REVOKE = """
UPDATE service_tokens SET revoked_at = now(), revoked_by = $3
WHERE id = $1 AND ($2::text IS NULL OR user_id = $2) AND revoked_at IS NULL RETURNING *
"""
_LASTING = """
SELECT id FROM service_tokens
WHERE id = ANY($1::uuid[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
"""


class TooManyTokens(Conflict):
    """A user may have 100 service tokens that are neither revoked nor expired: revoke what is not used any more."""

    code = "too_many_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceToken:
    """All that is known of one."""

    id: UUID
    user_id: str
    name: str
    scopes: list[Role]
    groups: list[str]
    made_by: str
    made_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


_FIELDS = tuple(field.name for field in fields(ServiceToken))


@dataclass(frozen=True, slots=True)
class Bearer:
    """What a token that was shown stands for. ``unseen``: its last use is worth writing again."""

    token: ServiceToken
    expired: bool
    unseen: bool


class ServiceTokens:
    """The table ``service_tokens``. Every method raises StoreUnavailable when Postgres is away.

    Where ``user_id`` is None, everybody's are meant.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(
        self,
        *,
        token_id: UUID,
        digest: bytes,
        user_id: str,
        name: str,
        scopes: Collection[Role],
        groups: Collection[str],
        expires_at: datetime | None,
        origin: Origin,
        once: Once | None = None,
    ) -> ServiceToken:
        """Keep a new one. Raises TooManyTokens; Repeated and KeyReused, as ``once.writing``."""
        async with writing(self._pool, once) as connection, connection.transaction():
            await connection.execute(_LOCK, user_id)
            if await connection.fetchval(_LIVE, user_id) >= MOST:
                raise TooManyTokens
            await connection.execute(_THROW_AWAY, user_id, ENDED_MOST)
            row = await connection.fetchrow(
                _ADD, token_id, digest, user_id, name, sorted(scopes), sorted(groups), origin.actor, expires_at
            )
            assert row is not None  # noqa: S101 - RETURNING of a plain INSERT answers its row
            made = _token(row)
            await note(connection, origin, _deed("service_token.made", made))
        return made

    async def bearer(self, digest: bytes) -> Bearer | None:
        """The token with this digest, whatever became of it."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(_BEARER, digest)
        if row is None:
            return None
        return Bearer(_token(row), bool(row["expired"]), bool(row["unseen"]))

    async def used(self, token_ids: Collection[UUID]) -> None:
        """They are in use now; written once a minute each, whoever says it how often."""
        async with reading(self._pool) as connection:
            await connection.execute(_USED, sorted(token_ids))

    async def ended(self, token_ids: Collection[UUID]) -> set[UUID]:
        """Those of these that are good for nothing any more."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_LASTING, list(token_ids))
        return set(token_ids) - {row["id"] for row in rows}

    async def get(self, token_id: UUID, *, user_id: str | None) -> ServiceToken | None:
        """One, revoked or not."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(_GET, token_id, user_id)
        return _token(row) if row is not None else None

    async def listed(self, *, user_id: str | None, after: Place | None, limit: int) -> list[ServiceToken]:
        """All, newest first."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_LIST, user_id, *(after or (None, None)), limit)
        return [_token(row) for row in rows]

    async def revoke(self, token_id: UUID, *, user_id: str | None, origin: Origin) -> ServiceToken | None:
        """From now on it opens nothing. One that is revoked stays as it is; None when there is none."""
        async with reading(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(_REVOKE, token_id, user_id, origin.actor)
            if row is not None:
                await note(connection, origin, _deed("service_token.revoked", _token(row)))
            else:
                row = await connection.fetchrow(_GET, token_id, user_id)
        return _token(row) if row is not None else None


def _token(row: asyncpg.Record) -> ServiceToken:
    return ServiceToken(**{name: row[name] for name in _FIELDS})


def _deed(action: str, token: ServiceToken) -> Deed:
    detail = {
        "name": token.name,
        "scopes": token.scopes,
        "groups": token.groups,
        "expires_at": token.expires_at.isoformat() if token.expires_at is not None else None,
    }
    return Deed(action=action, target=str(token.id), owner=token.user_id, detail=detail)
