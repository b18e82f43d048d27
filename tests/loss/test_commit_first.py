"""Commit before effect, witnessed from the other side: when a call arrives, its intent is on disk already."""

from __future__ import annotations

from typing import Any

import asyncpg

from daemon.dev.agent import Emit
from daemon.dev.embedded import EmbeddedPostgres
from daemon.dev.envelope import Json
from daemon.dev.scripted_agent import text_result
from daemon.machine.state import run_of
from tests.loss.test_postgres_restarts import durable, over
from tests.runtime.harness import Rig, step

__all__ = ["durable", "over"]

ON_DISK = """
SELECT DISTINCT ON (step_index) req_id, state FROM (
    SELECT step_index, req_id, state, 0 AS seq FROM workflow_run_attempts WHERE run_id = $1
    UNION ALL
    SELECT (a -> 'attempt' ->> 'step_index')::int, a -> 'attempt' ->> 'req_id', a -> 'attempt' ->> 'state', p.first_seq
    FROM workflow_run_heads h JOIN workflow_run_pages p ON p.run_id = h.id AND p.first_seq > h.written_seq
        CROSS JOIN LATERAL json_array_elements(p.changes -> 'attempts') AS a
    WHERE h.id = $1
) AS attempts ORDER BY step_index, seq DESC
"""
"""The attempts of a run, one a step: as their rows say, and the pages that were appended since."""


async def test_the_intent_of_a_call_and_the_end_of_the_one_before_are_on_disk_when_it_arrives(
    over: Rig, durable: EmbeddedPostgres
) -> None:
    """With these settings Postgres shows a commit to others only after its WAL is flushed, so seen means kept."""
    witness = await asyncpg.connect(durable.url)
    settings = {name: await witness.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
    assert settings == {"fsync": "on", "synchronous_commit": "on"}
    seen: list[list[tuple[Any, ...]]] = []

    async def look(arguments: Json | None, emit: Emit) -> Json:
        rows = await witness.fetch(ON_DISK, run_of(over.gateway.ledger[-1].req_id))
        seen.append([tuple(row) for row in rows])
        return text_result("seen")

    over.tools.tool("ok", look)
    await over.start()
    run_id = await over.create(*(step(f"s{n}") for n in range(6)))
    await over.until(run_id, "completed")
    await witness.close()
    calls = [execution.req_id for execution in over.gateway.ledger]
    assert len(calls) == 6
    for arrived, rows in enumerate(seen):
        assert [req_id for req_id, _ in rows] == calls[: arrived + 1]
        assert [state for _, state in rows[:-1]] == ["done"] * arrived
        assert rows[-1][1] in ("intent", "sent", "acked")
