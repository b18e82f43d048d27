"""Which runs call which agents: noted as a run is created, by whomever, and as one migrates."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import orjson
import pytest

from daemon.store.matching import Filter
from daemon.store.pool import Pool
from daemon.store.runs import Runs
from tests.patience import eventually
from tests.store.conftest import move_schema
from tests.store.test_privileges import as_role, role

__all__ = ["role"]

MIGRATIONS = ("0025.agents_of_runs", "0027.walks_of_lists")
FLOW = UUID(int=1)
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
INSERT = """
INSERT INTO workflow_runs (id, workflow_id, user_id, status, nonce, created_at)
VALUES ($1, $2, 'ann', 'running', '', $3)
"""
SPEC = "INSERT INTO workflow_run_specs (run_id, snapshot) VALUES ($1, $2::text::json)"
ONE = '{"steps":[{"tool_config":{"agent_id":"a"}}]}'
NOTED = 'SELECT user_id, agent_id, created_at, run_id FROM workflow_run_agents ORDER BY run_id, agent_id COLLATE "C"'
LOCKED = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock')"


async def create(writer: Pool | asyncpg.Connection[asyncpg.Record], number: int, snapshot: str = ONE) -> UUID:
    """As nodes of the release before do, and who copies runs by SQL: by plain INSERTs."""
    run_id = UUID(int=number)
    await writer.execute(INSERT, run_id, FLOW, BEGAN)
    await writer.execute(SPEC, run_id, snapshot)
    return run_id


async def listed(pool: Pool, agent: str, *, limit: int = 9) -> list[UUID]:
    return [head.id for head in await Runs(pool).matching(Filter(agent_id=agent), user_id="ann", limit=limit)]


SNAPSHOTS = {
    "each agent once": ('{"steps":[%s,%s,%s]}', ["a", "b", "a"], ["a", "b"]),
    "no steps": ('{"title":"T"}', [], []),
    "steps that are none": ('{"steps":7}', [], []),
    "steps of no kind": ('{"steps":[null,1,"a",[],{},{"tool_config":null},{"tool_config":[1]},%s]}', ["a"], ["a"]),
    "no snapshot": ("null", [], []),
    "an agent of no name": ('{"steps":[{"tool_config":{"agent_id":null}},%s]}', ["a"], ["a"]),
    "what no text can be": ('{"steps":[{"tool_config":{"agent_id":"\\u0000"}}]}', [], []),
    "half a character": ('{"steps":[{"tool_config":{"agent_id":"\\ud800"}}]}', [], []),
    "a name as long as names are": ('{"steps":[%s]}', ["\U0001f680" * 255], ["\U0001f680" * 255]),
    "a name that is longer": ('{"steps":[%s,%s]}', ["x" * 256, "a"], ["a"]),
    "signs": ('{"steps":[%s,%s]}', ["' OR true --", '"%_\\{}'], ['"%_\\{}', "' OR true --"]),
}


@pytest.fixture(autouse=True)
async def strict(pool: Pool) -> None:
    """Without the tests' own trigger, which is as particular about snapshots as owners of agents are."""
    await pool.execute("DROP TRIGGER tests_free_agents ON workflow_run_specs")


def snapshot_of(name: str) -> tuple[str, list[str]]:
    """And the agents that it has."""
    text, given, expected = SNAPSHOTS[name]
    return text % tuple(orjson.dumps({"tool_config": {"agent_id": agent}}).decode() for agent in given), expected


@pytest.mark.parametrize("name", SNAPSHOTS)
async def test_a_run_is_noted_by_its_agents_whatever_its_snapshot(pool: Pool, name: str) -> None:
    snapshot, agents = snapshot_of(name)
    run_id = await create(pool, 9, snapshot)
    assert [tuple(row) for row in await pool.fetch(NOTED)] == [("ann", agent, BEGAN, run_id) for agent in agents]
    for agent in agents:
        assert await listed(pool, agent) == [run_id]
    assert await listed(pool, "nobody") == [], "what cannot be read keeps nobody from the list"


async def test_a_run_that_is_gone_takes_no_place_on_a_page(pool: Pool) -> None:
    left, gone = await create(pool, 8), await create(pool, 9)
    await pool.execute("DELETE FROM workflow_run_specs WHERE run_id = $1", gone)
    await pool.execute("DELETE FROM workflow_runs WHERE id = $1", gone)
    assert await listed(pool, "a", limit=1) == [left]


async def test_runs_that_there_are_are_noted_by_the_migration_and_left_whole_by_the_way_back(
    pool: Pool, database: str
) -> None:
    for number, name in enumerate(SNAPSHOTS, 1):
        await create(pool, number, snapshot_of(name)[0])
    noted = await pool.fetch(NOTED)
    runs = await pool.fetch("SELECT r.*, s.snapshot FROM workflow_runs r JOIN workflow_run_specs s ON s.run_id = r.id")
    await pool.expire_connections()
    for migration in reversed(MIGRATIONS):
        move_schema(database, migration, back=True)
    late = await create(pool, 99)  # by nodes of the release before, on their schema
    await pool.expire_connections()
    for migration in MIGRATIONS:
        move_schema(database, migration)
    assert await pool.fetch(NOTED) == [*noted, ("ann", "a", BEGAN, late)]
    left = await pool.fetch("SELECT r.*, s.snapshot FROM workflow_runs r JOIN workflow_run_specs s ON s.run_id = r.id")
    assert [row for row in left if row["id"] != late] == runs


async def test_runs_that_are_created_while_it_is_migrated_are_noted(pool: Pool, database: str, role: str) -> None:
    """By nodes that go on meanwhile, as a role that was given its rights before."""
    await pool.expire_connections()
    for migration in reversed(MIGRATIONS):
        move_schema(database, migration, back=True)
    for table in ("workflow_runs", "workflow_run_specs"):
        await pool.execute(f'GRANT SELECT, INSERT ON {table} TO "{role}"')
    await pool.execute("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC")
    node = await asyncpg.connect(as_role(database, role))
    early = node.transaction()
    await early.start()
    run_id = await create(node, 1)
    migrating = asyncio.create_task(asyncio.to_thread(move_schema, database, MIGRATIONS[0]))
    await eventually(lambda: pool.fetchval(LOCKED), what="the migration waiting for who creates")
    assert not migrating.done()
    await early.commit()
    await migrating
    later = await create(node, 2)
    assert [row["run_id"] for row in await node.fetch(NOTED)] == [run_id, later]
    await node.close()


async def test_runs_are_created_beside_each_other(pool: Pool) -> None:
    runs = await asyncio.gather(*(create(pool, number) for number in range(1, 41)))
    assert await listed(pool, "a", limit=50) == runs[::-1]
