"""Whether those who watch runs that are not theirs may still see them. Used by ``api/watches``.

They see a run since they were asked about one of its calls (``asked_to_decide``), which rests on bindings and grants:
it ends when somebody changes those, and then the version of authority is another, or when a grant's own end has come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import orjson

from daemon.store.pool import Pool, reading

_STANDS = """
SELECT version, (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms FROM authority_version
"""
_NEXT_END = """
SELECT ceil(extract(epoch FROM min(expires_at)) * 1000)::bigint FROM agent_grants
WHERE permission = 'approve' AND expires_at > clock_timestamp()
"""
_SEEING = """
SELECT w.number - 1 FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS w (run_id, subjects, number)
WHERE asked_to_decide(w.run_id, ARRAY(SELECT json_array_elements_text(w.subjects::json)))
"""


class Asked(NamedTuple):
    """Who watches which run since they, or their groups, were asked about a call of it."""

    run_id: UUID
    subjects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """The version of authority, and Postgres' time."""

    version: int
    now_ms: int


class Sight:
    """Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def standing(self) -> Standing:
        """One row of one page: what can be asked often."""
        async with reading(self._pool) as connection:
            row = await connection.fetchrow(_STANDS)
        assert row is not None  # noqa: S101 - the migration put that one row there
        return Standing(row["version"], row["now_ms"])

    async def next_end(self) -> int | None:
        """When (epoch ms) the next of the grants ends by itself that let somebody approve; None: none of them does."""
        async with reading(self._pool) as connection:
            found: int | None = await connection.fetchval(_NEXT_END)
        return found

    async def lost(self, asked: Sequence[Asked]) -> set[Asked]:
        """Those of these who may not see their run any more."""
        run_ids = [one.run_id for one in asked]
        subjects = [orjson.dumps(one.subjects).decode() for one in asked]
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_SEEING, run_ids, subjects)
        return set(asked) - {asked[row[0]] for row in rows}
