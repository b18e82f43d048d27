"""Postgres is killed and comes back in the midst of commits: repeated until known, and never applied twice."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from daemon import telemetry
from daemon.dev.embedded import EmbeddedPostgres
from daemon.store.migrate import migrate
from tests.free_agents import free_agents
from tests.patience import eventually
from tests.runtime.harness import Rig, rig, step


@pytest.fixture
def durable(servers_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server that keeps what it acknowledged, as in production."""
    with EmbeddedPostgres(Path(tempfile.mkdtemp(prefix="pg-", dir=servers_dir))) as server:
        migrate(server.url)
        free_agents(server.url)
        yield server


@pytest.fixture
async def over(durable: EmbeddedPostgres, redis_url: str, redis_prefix: str) -> AsyncIterator[Rig]:
    async with rig(durable.url, redis_url, redis_prefix) as opened:
        yield opened


def lost() -> float:
    return telemetry.registry.get_sample_value("runwarden_commits_lost_total") or 0.0


async def test_crashes_of_postgres_in_the_midst_of_many_commits(over: Rig, durable: EmbeddedPostgres) -> None:
    nodes = [await over.start(name, linger_s=0.05) for name in ("n1", "n2")]
    runs = [await over.create(*(step(f"s{n}") for n in range(10))) for _ in range(20)]
    before = lost()
    for so_far in (30, 90, 150):
        await eventually(lambda so_far=so_far: len(over.gateway.ledger) >= so_far)
        os.kill(durable.pid, signal.SIGKILL)
        await asyncio.to_thread(durable.stop)
        await asyncio.to_thread(durable.start)
    for run_id in runs:
        await eventually(lambda run_id=run_id: _over(over, run_id), within_s=60)
    for run_id in runs:
        told = await over.events(run_id)  # dense, or this fails
        assert [event["type"] for event in told].count("step.completed") == 10
    over.never_twice(10 * len(runs))
    assert lost() == before, "what it acknowledged it has kept"
    assert all(node.healthy for node in nodes)


async def _over(over: Rig, run_id: object) -> bool:
    try:
        return bool(await over.pool.fetchval("SELECT status = 'completed' FROM workflow_runs WHERE id = $1", run_id))
    except Exception:  # noqa: BLE001 - whatever it is, the server is not there yet
        return False
