"""SIGKILL of the node, and start it again: the run goes on, no tool is called twice, nobody misses a word."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from daemon.dev.processes import free_port
from tests.api.harness import Stack, step
from tests.cluster.harness import Cluster
from tests.e2e.follower import Follower
from tests.patience import eventually


async def assert_whole(stack: Stack, run_id: str) -> list[dict[str, Any]]:
    """The log of a run: dense, its rows and its replay agree, one verdict an attempt."""
    events = await stack.log(run_id)
    rows = await stack.sql(
        "SELECT seq, event_type FROM workflow_run_events WHERE run_id = $1::text::uuid ORDER BY seq", run_id
    )
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert [(row["seq"], row["event_type"]) for row in rows] == [(e["seq"], e["event_type"]) for e in events]
    results = [event["payload"]["req_id"] for event in events if event["event_type"] == "tool.result"]
    assert len(results) == len(set(results))
    times = [event["created_at"] for event in events]
    assert all(one <= next_one for one, next_one in pairwise(times))
    return events


async def test_a_node_killed_while_a_streaming_step_runs_goes_on_when_started_again(machine: Cluster) -> None:
    """The same name, the same port, as a supervisor would; a browser watches all the while."""
    port = free_port()
    node = await machine.start("node", port=port)
    stack = machine.at(node)
    paced = {"lines": 60, "pace_ms": 20}
    run_id = await stack.start(step("first"), step("draft", "streaming", arguments=paced), step("last"))
    follower = Follower(stack, run_id)
    await eventually(lambda: "streaming" in machine.tools.running and follower.types.count("tool.log") > 2)
    await node.kill()
    assert machine.tools.running == ["streaming"]
    await machine.start("node", port=port)
    run = await stack.until(run_id, "completed")
    assert [execution.tool_name for execution in machine.gateway.ledger] == ["ok", "streaming", "ok"]
    assert [len(state["attempts"]) for state in run["steps_state"].values()] == [1, 1, 1]
    await follower.end()
    assert follower.connections >= 2
    follower.assert_saw(await assert_whole(stack, run_id))
    assert follower.types.count("run.completed") == 1


async def test_a_result_that_came_while_no_node_ran_is_found_at_the_gateway(machine: Cluster) -> None:
    node = await machine.start("node")
    stack = machine.at(node)
    run_id = await stack.start(step("a", "slow"), step("b"))
    await eventually(lambda: machine.tools.running, what="the tool running")
    await node.kill()
    machine.tools.release.set()
    await eventually(lambda: machine.gateway.of("RESULT"), what="the result")
    stack = machine.at(await machine.start("node"))
    await stack.until(run_id, "completed")
    assert [execution.tool_name for execution in machine.gateway.ledger] == ["slow", "ok"]
    await assert_whole(stack, run_id)


async def test_a_run_that_waits_for_a_person_waits_through_a_kill(machine: Cluster) -> None:
    node = await machine.start("node")
    stack = machine.at(node)
    run_id = await stack.start(step("a"), step("b", approval_policy="manual"))
    before = await stack.at_rest(run_id, "paused", "a")
    await node.kill()
    stack = machine.at(await machine.start("node"))
    assert await stack.run(run_id) == before
    assert (await stack.decide(run_id, "approve", {"step_id": "b"})).status == 200
    await stack.until(run_id, "completed")
    assert len(machine.gateway.ledger) == 2
