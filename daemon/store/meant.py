"""What people's words are about: each a run, if its speaker may see it, and a step of it. Used by ``api``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import asyncpg

from daemon.auth.caller import Caller
from daemon.machine.approval import Starter
from daemon.store.pool import Pool, reading
from daemon.store.runs import HEAD_COLUMNS, RunHead, head_of

_MEANT = f"""
SELECT said.number - 1 AS place, meant.step::text AS step, meant.token_maker, meant.spec_maker, {HEAD_COLUMNS}
FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS said (run_id, step_id, number)
JOIN workflow_run_heads r ON r.id = said.run_id AND (r.user_id = $3 OR $4 OR asked_to_decide(r.id, $5::text[]))
CROSS JOIN LATERAL (
    SELECT one.step, s.principal ->> 'token_maker' AS token_maker, s.principal ->> 'spec_maker' AS spec_maker
    FROM workflow_run_specs s
        CROSS JOIN LATERAL json_array_elements(s.snapshot -> 'steps') WITH ORDINALITY AS one (step, number)
    WHERE s.run_id = r.id
    ORDER BY one.step ->> 'id' = said.step_id DESC, one.number - 1 = r.current_step_index DESC, one.number DESC LIMIT 1
) meant
"""  # noqa: S608 - nothing of it is input


class About(NamedTuple):
    """About which run and step something is said."""

    run_id: UUID
    step_id: str


@dataclass(frozen=True, slots=True)
class Meant:
    """``step`` is the JSON text of the step that is named; where the run has none of that name, of the one it is at."""

    head: RunHead
    step: str
    starter: Starter


class Meanings:
    """Every method raises StoreUnavailable when Postgres is away."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def of(self, words: Sequence[About], *, by: Caller) -> list[Meant | None]:
        """Of each word in turn; None where there is no such run, or they may not see it."""
        run_ids, step_ids = [word.run_id for word in words], [word.step_id for word in words]
        reader = (by.user_id, by.admin, sorted(by.subjects))
        async with reading(self._pool) as connection:
            rows = await connection.fetch(_MEANT, run_ids, step_ids, *reader)
        found = {row["place"]: _meant(row) for row in rows}
        return [found.get(place) for place in range(len(words))]


def _meant(row: asyncpg.Record) -> Meant:
    starter = Starter(row["user_id"], row["token_maker"], row["spec_maker"])
    return Meant(head_of(row), row["step"], starter)
