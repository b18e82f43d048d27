"""Reading the audit log: newest first, filtered, by the place where the last page ended. Used by ``api``.

Admins read everything; others what is theirs (``owner``) and what they did themselves (``actor``). These are two walks
down two indexes, each as long as the page, so that neither the age nor the size of the log costs anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from daemon.auth.caller import Origin
from daemon.store.audit import Deed, note
from daemon.store.pool import Pool, reading

_COLUMNS = """id, at, actor, roles, via, address, client, action, outcome, code, run_id, owner, step_id, agent_id,
    target, digest, comment, detail"""
_TEXT = "concat_ws(' ', actor, action, code, step_id, agent_id, target, comment, detail::text)"


_ASKED = {
    "since": "at >= {}",
    "until": "at < {}",
    "actor": "actor = {}",
    "action": "starts_with(action, {})",
    "outcome": "outcome = {}",
    "run_id": "run_id = {}",
    "agent_id": "agent_id = {}",
    "has": f"strpos(lower({_TEXT}), lower({{}}::text)) > 0",
}
"""Of each field of a Search, what it asks."""


class Spot(NamedTuple):
    """Where a page of the audit ends."""

    at: datetime
    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the audit; see ``audit.Deed`` and ``auth.caller.Origin``."""

    id: int
    at: datetime
    actor: str
    roles: Sequence[str]
    via: str | None
    address: str | None
    client: str | None
    action: str
    outcome: str
    code: str | None
    run_id: UUID | None
    owner: str | None
    step_id: str | None
    agent_id: str | None
    target: str | None
    digest: str | None
    comment: str | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which lines are meant; None asks nothing of that kind.

    ``since`` is of it, ``until`` is not. ``action`` is how actions begin. ``has`` is text in what people and programs
    said, whatever its case; the lines that the rest means are read one by one for it. ``after``: what follows this
    place, newest first.
    """

    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    action: str | None = None
    outcome: str | None = None
    run_id: UUID | None = None
    agent_id: str | None = None
    has: str | None = None
    after: Spot | None = None


class Trail:
    """The table ``audit_log``. Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def note(self, origin: Origin, deed: Deed) -> None:
        """A line that tells of nothing that was changed."""
        async with reading(self._pool) as connection:
            await note(connection, origin, deed)

    async def listed(self, wanted: Search, *, user_id: str | None, limit: int) -> list[Line]:
        """The lines that the search means, newest first, at most ``limit``; of this user's, or with None of all."""
        query, arguments = _query(wanted, user_id, limit)
        async with reading(self._pool) as connection:
            rows = await connection.fetch(query, *arguments)
        return [_line(row) for row in rows]


def _query(wanted: Search, user_id: str | None, limit: int) -> tuple[str, list[object]]:
    """The query and its arguments. Only what is asked for stands in it, so that the planner sees which index serves."""
    conditions: list[str] = []
    arguments: list[object] = [limit]
    for name, condition in _ASKED.items():
        value = getattr(wanted, name)
        if value is not None:
            arguments.append(value)
            conditions.append(condition.format(f"${len(arguments)}"))
    if wanted.after is not None:
        arguments += wanted.after
        conditions.append(f"(at, id) < (${len(arguments) - 1}, ${len(arguments)})")
    order = "ORDER BY at DESC, id DESC LIMIT $1"
    if user_id is None:
        where = " AND ".join(conditions) or "true"
        return f"SELECT {_COLUMNS} FROM audit_log WHERE {where} {order}", arguments  # noqa: S608 - only our own words
    arguments.append(user_id)
    walks = []
    for whose in ("owner", "actor"):
        where = " AND ".join([f"{whose} = ${len(arguments)}", *conditions])
        walks.append(f"(SELECT at, id FROM audit_log WHERE {where} {order})")  # noqa: S608 - as above
    mine = f"SELECT id FROM ({' UNION '.join(walks)}) AS mine {order}"  # noqa: S608 - as above
    columns = f"SELECT {_COLUMNS} FROM audit_log"  # noqa: S608 - as above
    return f"{columns} WHERE id = ANY(ARRAY({mine})) {order}", arguments


def _line(row: asyncpg.Record) -> Line:
    return Line(**dict(row) | {"detail": orjson.loads(row["detail"])})
