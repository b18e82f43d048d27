"""Whose an agent is, and the versions of the tokens by which agents show it. Used by ``api``.

A version only ever rises, over all owners of an agent, so a token that was revoked is never good again. Each change is
one transaction with its line in the audit; the trigger of the table raises the version of authority.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

import asyncpg

from daemon.auth.caller import Origin
from daemon.errors import Conflict, NotFound
from daemon.store.audit import Deed, note
from daemon.store.pool import Connection, Pool, reading

OWNED_MOST = 1000
"""Agents that one user makes their own by asking for tokens; an admin binds as many as they like."""

_SEEN = """
WITH known AS (
    SELECT agent_id, owner, bound_at FROM agent_bindings b
    WHERE $1 OR owner = $2 OR EXISTS (
        SELECT FROM agent_grants g WHERE g.agent_id = b.agent_id AND g.subject = ANY($3::text[])
            AND (g.expires_at IS NULL OR g.expires_at > now()))
    UNION ALL
    SELECT id, NULL, NULL FROM unnest($4::text[]) AS id
    WHERE $1 AND NOT EXISTS (SELECT FROM agent_bindings b WHERE b.agent_id = id)
)
SELECT agent_id, owner, bound_at,
    ARRAY(
        SELECT DISTINCT permission FROM agent_grants g WHERE g.agent_id = known.agent_id
            AND g.subject = ANY($3::text[]) AND (g.expires_at IS NULL OR g.expires_at > now())
    ) AS permissions,
    (
        SELECT reason FROM holds h WHERE h.released_at IS NULL
            AND (h.scope = 'everything' OR h.scope = 'agent' AND h.target = known.agent_id)
        ORDER BY scope DESC LIMIT 1
    ) AS held
FROM known
WHERE ($5::text IS NULL OR agent_id = $5) AND ($6::text IS NULL OR agent_id > $6 COLLATE "C")
ORDER BY agent_id COLLATE "C" LIMIT $7
"""
_BIND = """
INSERT INTO agent_bindings (agent_id, owner, token_version, bound_by)
SELECT $1, $2, coalesce((SELECT max(token_version) FROM agent_past_owners WHERE agent_id = $1), 0), $3
ON CONFLICT (agent_id) DO NOTHING RETURNING true
"""
_TAKE = """
INSERT INTO agent_bindings (agent_id, owner, token_version, bound_by) SELECT $1, $2, 1, $2
WHERE NOT EXISTS (SELECT FROM agent_past_owners WHERE agent_id = $1)
ON CONFLICT (agent_id) DO NOTHING RETURNING true
"""
_LOCK = "SELECT owner, token_version FROM agent_bindings WHERE agent_id = $1 FOR UPDATE"
_TRANSFER = """
UPDATE agent_bindings SET owner = $2, token_version = $3, bound_by = $4, bound_at = now() WHERE agent_id = $1
"""
_FOLLOW = """
UPDATE agent_bindings SET token_version = greatest(token_version, $3) WHERE agent_id = $1 AND owner = $2
"""
_PAST = """
INSERT INTO agent_past_owners AS p (agent_id, owner, token_version, ended_by) VALUES ($1, $2, $3, $4)
ON CONFLICT (agent_id, owner) DO UPDATE SET ended_by = excluded.ended_by, ended_at = now(),
    token_version = greatest(p.token_version, excluded.token_version)
"""
_EVERY_VERSION = """
SELECT owner, agent_id, max(token_version) AS version FROM (
    SELECT owner, agent_id, token_version FROM agent_bindings
    UNION ALL SELECT owner, agent_id, token_version FROM agent_past_owners
) AS every
WHERE token_version > 0 AND {} GROUP BY agent_id, owner
"""
_VERSIONS_OF = _EVERY_VERSION.format("agent_id = $1")
_VERSIONS = f"""
{_EVERY_VERSION.format('(agent_id, owner) > ($1 COLLATE "C", $2 COLLATE "C")')}
ORDER BY agent_id COLLATE "C", owner COLLATE "C" LIMIT $3
"""

Bound = Literal["bound", "unchanged", "transferred"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenAgent:
    """An agent as somebody may see it. ``permissions``: granted to them; ``held``: why it is held, if it is."""

    agent_id: str
    owner: str | None
    bound_at: datetime | None
    permissions: Sequence[str]
    held: str | None


class TokenVersion(NamedTuple):
    """What the Gateways shall accept: tokens of ``owner`` for ``agent_id`` that name this version."""

    owner: str
    agent_id: str
    version: int


class Agents:
    """``agent_bindings`` and ``agent_past_owners``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def seen(
        self,
        *,
        user_id: str,
        subjects: Collection[str],
        everything: bool,
        connected: Collection[str],
        only: str | None = None,
        after: str | None = None,
        limit: int = 1,
    ) -> list[SeenAgent]:
        """Those that are theirs or granted to them, by id. ``everything``: all, and the unbound of ``connected``."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(
                _SEEN, everything, user_id, sorted(subjects), sorted(connected), only, after, limit
            )
        return [SeenAgent(**dict(row)) for row in rows]

    async def bind(
        self, agent_id: str, owner: str, origin: Origin, *, free_only: bool = False, owned_by: str | None = None
    ) -> Bound:
        """Make it theirs, whosever it was. Grants stay; tokens of an owner before it are good no more.

        ``free_only``: raises Conflict where it is another's. ``owned_by``: raises NotFound unless it is theirs now.
        """
        while True:
            async with reading(self._pool) as connection, connection.transaction():
                done = await self._bound(connection, agent_id, owner, origin, free_only=free_only, owned_by=owned_by)
            if done is not None:
                return done

    async def _bound(
        self,
        connection: Connection,
        agent_id: str,
        owner: str,
        origin: Origin,
        *,
        free_only: bool,
        owned_by: str | None,
    ) -> Bound | None:
        """None: it was bound between two statements. Then anew, in another transaction: an INSERT that came too late
        has the version of authority locked all the same, and must not wait with it for the binding."""
        row = await connection.fetchrow(_LOCK, agent_id)
        if row is None and owned_by is None:
            if not await connection.fetchval(_BIND, agent_id, owner, origin.actor):
                return None
            await note(connection, origin, Deed(action="agent.bound", agent_id=agent_id, owner=owner))
            return "bound"
        if row is None or (owned_by is not None and row["owner"] != owned_by):
            raise NotFound("There is no such agent, or it is not yours any more.")
        if row["owner"] == owner:
            return "unchanged"
        if free_only:
            raise Conflict(f"The agent {agent_id!r} belongs to somebody else.", code="agent_taken")
        version = await self._end(connection, agent_id, row, origin)
        await connection.execute(_TRANSFER, agent_id, owner, version, origin.actor)
        told = {"from": row["owner"]}
        await note(connection, origin, Deed(action="agent.transferred", agent_id=agent_id, owner=owner, detail=told))
        return "transferred"

    async def unbind(self, agent_id: str, origin: Origin) -> str | None:
        """From now on it is nobody's, and its grants are gone; answers whose it was, None when it was nobody's."""
        async with reading(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(_LOCK, agent_id)
            if row is None:
                return None
            owner: str = row["owner"]
            await self._end(connection, agent_id, row, origin)
            await connection.execute("DELETE FROM agent_bindings WHERE agent_id = $1", agent_id)
            await note(connection, origin, Deed(action="agent.unbound", agent_id=agent_id, owner=owner))
            return owner

    async def _end(self, connection: Connection, agent_id: str, row: asyncpg.Record, origin: Origin) -> int:
        """It is theirs no more; answers the version from which on a token may be good again."""
        version = row["token_version"] + 1 if row["token_version"] else 0
        await connection.execute(_PAST, agent_id, row["owner"], version, origin.actor)
        return version

    async def mint(self, agent_id: str, user_id: str, origin: Origin, *, reset: bool) -> tuple[int, bool]:
        """The version of a token for it, and whether the agent became theirs by this: a new id is the first's to ask.

        Raises Conflict where it is, or was, somebody's. ``reset``: the next version, so that no older token is good.
        """
        async with reading(self._pool) as connection, connection.transaction():
            row = await connection.fetchrow(_LOCK, agent_id)
            if row is None and await connection.fetchval(_TAKE, agent_id, user_id):
                await _bounded(connection, user_id)
                await note(connection, origin, Deed(action="agent.bound", agent_id=agent_id, owner=user_id))
                await _minted(connection, origin, agent_id, user_id, 1, reset=False)
                return 1, True
        async with reading(self._pool) as connection, connection.transaction():  # another, as in ``_bound``
            row = await connection.fetchrow(_LOCK, agent_id)
            if row is None or row["owner"] != user_id:
                raise Conflict(f"The id {agent_id!r} is taken: choose another.", code="agent_taken")
            version = row["token_version"] + 1 if reset and row["token_version"] else max(1, row["token_version"])
            await _set_version(connection, agent_id, version)
            await _minted(connection, origin, agent_id, user_id, version, reset=reset)
        return version, False

    async def follow_version(self, agent_id: str, user_id: str, version: int) -> None:
        """The Gateways know a later version than we (a restore, perhaps): ours is that one from now on."""
        async with reading(self._pool) as connection:
            await connection.execute(_FOLLOW, agent_id, user_id, version)

    async def versions_of(self, agent_id: str) -> list[TokenVersion]:
        """What the Gateways shall know of one agent, its past owners included."""
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_VERSIONS_OF, agent_id)
        return [_token_version(row) for row in rows]

    async def token_versions(self, *, after: TokenVersion | None, limit: int) -> list[TokenVersion]:
        """What the Gateways shall know, page by page: also that past owners' tokens are good no more."""
        place = (after.agent_id, after.owner) if after is not None else ("", "")
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_VERSIONS, *place, limit)
        return [_token_version(row) for row in rows]


def _token_version(row: asyncpg.Record) -> TokenVersion:
    return TokenVersion(row["owner"], row["agent_id"], row["version"])


async def _minted(
    connection: Connection, origin: Origin, agent_id: str, user_id: str, version: int, *, reset: bool
) -> None:
    action = "agent_token.reset" if reset else "agent_token.minted"
    await note(connection, origin, Deed(action=action, agent_id=agent_id, owner=user_id, detail={"version": version}))


async def _set_version(connection: Connection, agent_id: str, version: int) -> None:
    await connection.execute(
        "UPDATE agent_bindings SET token_version = $2 WHERE agent_id = $1 AND token_version <> $2", agent_id, version
    )


async def _bounded(connection: Connection, user_id: str) -> None:
    owned = await connection.fetchval("SELECT count(*) FROM agent_bindings WHERE owner = $1", user_id)
    if owned > OWNED_MOST:
        raise Conflict(f"You own {OWNED_MOST} agents already; ask an admin to bind more.", code="too_many_agents")
