"""Lists of runs: what Postgres reads for a page. Rows are counted, not timed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from daemon.store import runs
from daemon.store.pool import Pool
from daemon.store.runs import Filter, Runs

LIMIT = 51
FILL = """
INSERT INTO workflow_runs (id, workflow_id, user_id, status, paused_reason, nonce, created_at, title, step_count)
SELECT gen_random_uuid(), gen_random_uuid(), 'ann', $1, $2, '', $3::timestamptz + make_interval(secs => n), 'T', 1
FROM generate_series(1, $4::int) AS n
"""
LONG_AGO, LATELY = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What of the plan reads a table, and was executed."""
    if "Relation Name" in plan and plan["Actual Loops"]:
        yield plan
    for part in plan.get("Plans", ()):
        yield from scans(part)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("reason", ["held", "step_failed", "user_cancel"])
async def test_what_waits_for_a_reason_is_found_among_finished_runs_without_reading_them(
    pool: Pool, reason: str, mode: str
) -> None:
    status = "canceled" if reason == "user_cancel" else "paused"
    await pool.execute(FILL, status, reason, LONG_AGO, 200)
    await pool.execute(FILL, "completed", None, LATELY, 5000)
    await pool.execute(FILL, "paused", "awaiting_approval", LATELY, 9)
    await pool.execute("ANALYZE workflow_runs")
    wanted = Filter(paused_reasons=[reason])
    found = await Runs(pool).listed(wanted, user_id="ann", limit=LIMIT)
    assert [item.head.paused_reason for item in found] == [reason] * LIMIT
    query, arguments = runs._matching(runs._LISTED, wanted, "ann", LIMIT)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        asked = await connection.prepare(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")
        told = await asked.fetchval(*arguments)
    read = list(scans(orjson.loads(told)[0]["Plan"]))
    of_runs = [scan for scan in read if scan["Relation Name"] == "workflow_runs"]
    rows = sum(scan["Actual Rows"] * scan["Actual Loops"] + scan.get("Rows Removed by Filter", 0) for scan in of_runs)
    assert rows <= 200 + 9 + LIMIT, told
    assert max(scan["Actual Loops"] for scan in read) <= LIMIT, "newest pages are looked up for what is listed alone"


async def test_reasons_of_runs_that_wait_and_of_canceled_ones_can_be_asked_for_together(pool: Pool) -> None:
    for status, reason in (("paused", "held"), ("canceled", "user_cancel"), ("paused", "step_failed")):
        await pool.execute(FILL, status, reason, LATELY, 1)
    found = await Runs(pool).matching(Filter(paused_reasons=["held", "user_cancel"]), user_id="ann", limit=9)
    assert {head.paused_reason for head in found} == {"held", "user_cancel"}
    both = Filter(statuses=["paused"], paused_reasons=["held", "user_cancel"])
    assert [head.paused_reason for head in await Runs(pool).matching(both, user_id="ann", limit=9)] == ["held"]
