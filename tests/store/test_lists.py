"""Lists of runs: what Postgres reads for a page. Rows are counted, not timed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
import pytest

from daemon.store import runs
from daemon.store.matching import Filter, matching
from daemon.store.pool import Pool
from daemon.store.runs import Runs

LIMIT = 51
FILL = """
INSERT INTO workflow_runs (id, workflow_id, user_id, status, paused_reason, nonce, created_at, title, step_count)
SELECT gen_random_uuid(), gen_random_uuid(), 'ann', $1, $2, '', $3::timestamptz + make_interval(secs => n), 'T', 1
FROM generate_series(1, $4::int) AS n
"""
FLOW = UUID(int=7)
LONG_AGO, LATELY = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)


def scans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What of the plan reads a table, and was executed."""
    if "Relation Name" in plan and plan["Actual Loops"]:
        yield plan
    for part in plan.get("Plans", ()):
        yield from scans(part)


async def executed(pool: Pool, mode: str, query: str, arguments: Sequence[object]) -> list[dict[str, Any]]:
    """What a query reads, by a plan of this kind. Only what a session has prepared gets one for all values."""
    given = ", ".join(f"'{_literal(argument)}'" for argument in arguments)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
        await connection.execute(f"PREPARE page AS {query}")
        told = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE page ({given})")
        await connection.execute("DEALLOCATE page")
    assert isinstance(told, str)
    return list(scans(orjson.loads(told)[0]["Plan"]))


def _literal(argument: object) -> str:
    return f"{{{','.join(map(str, argument))}}}" if isinstance(argument, (list, tuple)) else str(argument)


async def read_for(pool: Pool, wanted: Filter, mode: str) -> list[dict[str, Any]]:
    """What a page of ann's reads."""
    return await executed(pool, mode, *matching(runs._LISTED, wanted, "ann", LIMIT))


def rows_of(scan: dict[str, Any]) -> float:
    """How many rows it looked at."""
    looked: float = scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)
    return looked * scan["Actual Loops"]


MODES = ["force_custom_plan", "force_generic_plan"]


@pytest.mark.parametrize("mode", MODES)
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
    read = await read_for(pool, wanted, mode)
    of_runs = [scan for scan in read if scan["Relation Name"] == "workflow_runs"]
    rows = sum(rows_of(scan) for scan in of_runs)
    assert rows <= 200 + 9 + LIMIT, read
    assert max(scan["Actual Loops"] for scan in read) <= LIMIT, "newest pages are looked up for what is listed alone"


async def test_reasons_of_runs_that_wait_and_of_canceled_ones_can_be_asked_for_together(pool: Pool) -> None:
    for status, reason in (("paused", "held"), ("canceled", "user_cancel"), ("paused", "step_failed")):
        await pool.execute(FILL, status, reason, LATELY, 1)
    found = await Runs(pool).matching(Filter(paused_reasons=["held", "user_cancel"]), user_id="ann", limit=9)
    assert {head.paused_reason for head in found} == {"held", "user_cancel"}
    both = Filter(statuses=["paused"], paused_reasons=["held", "user_cancel"])
    assert [head.paused_reason for head in await Runs(pool).matching(both, user_id="ann", limit=9)] == ["held"]


SPECS = """
INSERT INTO workflow_run_specs (run_id, snapshot)
SELECT id, json_build_object('steps', json_build_array(json_build_object('tool_config', json_build_object('agent_id',
    CASE WHEN paused_reason = 'held' THEN 'rare' ELSE 'often' END)))) FROM workflow_runs
"""
EMPTY_HANDED = {
    "an agent that nobody called": Filter(agent_id="nobody"),
    "in a status": Filter(agent_id="nobody", statuses=["completed"]),
    "of a workflow": Filter(agent_id="nobody", workflow_id=FLOW),
    "two statuses": Filter(statuses=["failed", "canceled"]),
    "a status of an agent of all": Filter(agent_id="often", statuses=["failed", "running"]),
    "a status of a workflow of all": Filter(workflow_id=FLOW, statuses=["failed"]),
    "a reason in a status": Filter(statuses=["paused"], paused_reasons=["step_failed"]),
    "an agent before all": Filter(agent_id="often", created_before=LONG_AGO),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("analyzed", [True, False])
async def test_what_is_rare_is_found_and_what_is_not_there_missed_without_reading_what_is(
    pool: Pool, mode: str, analyzed: bool
) -> None:
    """Whatever Postgres believes of the tables."""
    await pool.execute(FILL, "completed", None, LATELY, 5000)
    await pool.execute(FILL, "paused", "held", LONG_AGO, 30)
    await pool.execute("UPDATE workflow_runs SET workflow_id = $1", FLOW)
    await pool.execute(SPECS)
    if analyzed:
        await pool.execute("VACUUM ANALYZE")
    for name, wanted in EMPTY_HANDED.items():
        assert await Runs(pool).matching(wanted, user_id="ann", limit=LIMIT) == [], name
        read = await read_for(pool, wanted, mode)
        walked = [scan for scan in read if "Only" not in scan["Node Type"]]  # the others only count
        assert sum(rows_of(scan) for scan in walked) == 0, (name, walked)
    for wanted in (Filter(agent_id="rare"), Filter(agent_id="rare", statuses=["paused", "failed"])):
        assert len(await Runs(pool).matching(wanted, user_id="ann", limit=LIMIT)) == 30
        read = await read_for(pool, wanted, mode)
        assert max(scan["Actual Loops"] for scan in read) <= 30
        assert sum(rows_of(scan) for scan in read) <= 30 * 8, read
