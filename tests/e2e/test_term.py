"""SIGTERM in the middle of a step: exit code 0, streams end with a hint, and the successor goes on."""

from __future__ import annotations

import signal

from daemon.dev.processes import free_port
from tests.api.harness import step
from tests.cluster.harness import Cluster
from tests.e2e.follower import Follower
from tests.e2e.test_kill import assert_whole
from tests.patience import eventually


async def test_sigterm_in_the_middle_of_a_step_exits_0_and_the_successor_goes_on(machine: Cluster) -> None:
    port = free_port()
    node = await machine.start("node", port=port)
    stack = machine.at(node)
    run_id = await stack.start(step("a", "slow"), step("b", "streaming"), step("c"))
    follower = Follower(stack, run_id)
    await eventually(lambda: "tool.status" in follower.types, what="the step running")
    node.signal(signal.SIGTERM)
    assert await node.gone() == 0
    assert node.heard("node stopped")
    assert machine.tools.running == ["slow"], "the tool was not disturbed"
    machine.tools.release.set()
    await machine.start("node", port=port)
    await stack.until(run_id, "completed")
    assert [execution.tool_name for execution in machine.gateway.ledger] == ["slow", "streaming", "ok"]
    await follower.end()
    follower.assert_saw(await assert_whole(stack, run_id))


async def test_sigterm_of_an_idle_node_exits_0_at_once(machine: Cluster) -> None:
    node = await machine.start("node")
    node.signal(signal.SIGTERM)
    assert await node.gone() == 0
