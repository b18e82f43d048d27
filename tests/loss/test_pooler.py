"""Behind PgBouncer in transaction mode everything works that works without: nothing of ours outlives a transaction."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daemon.store.migrate import migrate, missing
from daemon.store.quarantine import quarantine
from tests.loss.pooler import pooled
from tests.runtime.harness import Rig, step


@pytest.fixture
def through(database: str) -> Iterator[str]:
    with pooled(database) as url:
        yield url


async def test_nodes_carry_their_runs_through_a_pooler(rig: Rig, through: str) -> None:
    nodes = [await rig.start(name, postgres_url=through, postgres_pooled=True, linger_s=0.05) for name in ("n1", "n2")]
    flowing = [await rig.create(*(step(f"s{n}") for n in range(5))) for _ in range(20)]
    paused = [await rig.create(step("a", manual=True), step("b", "failing", goes_on=True)) for _ in range(5)]
    for run_id in paused:
        await rig.until(run_id, "paused")
        await rig.passive(run_id)
        await rig.say(run_id, "approve", step_id="a")
    for run_id in (*flowing, *paused):
        await rig.until(run_id, "completed")
    rig.never_twice(5 * 20 + 2 * 5)
    assert all(node.healthy for node in nodes)


async def test_the_quarantine_works_through_a_pooler(rig: Rig, through: str) -> None:
    await rig.create(step("a"), ring=False)
    assert (await quarantine(through, really=True)).runs.total() == 1


def test_migrations_work_through_a_pooler(bare: str) -> None:
    with pooled(bare) as url:
        applied = migrate(url)
        assert applied
        assert missing(url) == []
        assert sorted(migrate(url, rollback_all=True)) == sorted(applied)


@pytest.fixture
def bare(database: str) -> str:
    """A database without any migration."""
    migrate(database, rollback_all=True)
    return database
