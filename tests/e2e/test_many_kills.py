"""Twenty SIGKILLs at random instants over runs of ten fast steps, with one node at a time and the next born at once."""

from __future__ import annotations

import random

from daemon.config import load
from daemon.dev.processes import free_port
from tests.api.harness import QUICK, Stack, step
from tests.cluster.harness import Cluster, Nursery
from tests.e2e.test_kill import assert_whole
from tests.patience import eventually

SEED = 20261122
KILLS = 20
TIMINGS = {"lease_ttl_s": 0.6, "sweep_period_s": 0.1, "stale_after_s": 0.1, "ack_timeout_s": 1}


async def answers(stack: Stack) -> None:
    """Wait until the node answers."""

    async def well() -> bool:
        try:
            return (await stack.ask("GET", "/readyz")).status == 200
        except OSError:
            return False

    await eventually(well, what="the node answering")


async def executed(machine: Cluster, count: int) -> None:
    """Wait until so many tools have been called in all."""
    await eventually(lambda: len(machine.gateway.ledger) >= count, what=f"{count} calls")


async def unknown(stack: Stack) -> bool:
    """Whether a kill has hit a call so that nobody can tell what became of it."""
    return bool(await stack.sql("SELECT 1 FROM workflow_runs WHERE status = 'paused'"))


async def test_twenty_kills_at_random_instants_run_no_tool_twice(machine: Cluster) -> None:
    """Each run ends completed, or paused as outcome_unknown where nobody can tell; no tool is ever called twice."""
    chance = random.Random(SEED)
    port = free_port()
    settings = load(
        **QUICK, postgres_url=machine.database, redis_url=machine.redis_url, gateway_url=machine.gateway.url
    )
    stack = Stack(f"http://127.0.0.1:{port}", machine.http, machine.gateway, machine.tools, machine.database, settings)
    given = QUICK | TIMINGS | {"port": port, "log_level": "WARNING", "gateway_url": machine.gateway.url}
    given |= {"postgres_url": machine.database, "redis_url": machine.redis_url, "redis_prefix": machine.redis_prefix}
    runs: list[str] = []
    async with Nursery("daemon.node") as nursery:
        node = await nursery.bear("node", "daemon", "serve", **given)
        await answers(stack)
        workflow_id = await stack.workflow(*(step(f"s{n}") for n in range(10)))
        for number in range(3 * KILLS):
            if number >= KILLS and await unknown(stack):
                break
            made = [await stack.post("/v1/workflow-runs", {"workflow_id": workflow_id}) for _ in range(3)]
            runs += [answered.body["run_id"] for answered in made]
            await executed(machine, len(machine.gateway.ledger) + chance.randrange(28))
            await node.kill()
            node = await nursery.bear("node", "daemon", "serve", **given)
            await answers(stack)
        ended = [await stack.until(run_id, "completed", "paused", within_s=30) for run_id in runs]
        assert {run["paused_reason"] for run in ended} <= {None, "outcome_unknown"}
        assert {run["status"] for run in ended} == {"completed", "paused"}, "some kills hit a call, some did not"
        assert set(machine.executions().values()) == {1}, f"seed {SEED}"
        for run in ended:
            assert max(len(state["attempts"]) for state in run["steps_state"].values()) == 1
            await assert_whole(stack, run["run_id"])
