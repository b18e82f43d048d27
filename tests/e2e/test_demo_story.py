"""The demo's own story over real MCP servers, with the node killed while its streaming step runs."""

from __future__ import annotations

from pathlib import Path

from daemon.dev.example import demo_mcp_servers, demo_repository, demo_workflow
from daemon.dev.mcp_agent import McpAgent
from daemon.dev.processes import free_port
from tests.cluster.harness import Cluster
from tests.e2e.follower import Follower
from tests.e2e.test_kill import assert_whole
from tests.patience import eventually


async def test_the_demos_run_goes_on_after_a_kill_and_no_tool_is_called_twice(machine: Cluster, tmp_path: Path) -> None:
    repo = demo_repository(tmp_path, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    await machine.gateway.connect(McpAgent("local", demo_mcp_servers(repo, out), log_dir=tmp_path / "mcp", start_s=60))
    port = free_port()
    node = await machine.start("node", port=port)
    stack = machine.at(node)
    spec = demo_workflow("local", repo, seconds=2.0)
    made = await stack.post("/v1/workflows", {"title": spec["title"], "spec": spec})
    run_id = (await stack.post("/v1/workflow-runs", {"workflow_id": made.body["workflow_id"]})).body["run_id"]
    follower = Follower(stack, run_id)

    def drafting() -> bool:
        return any(e["event_type"] == "tool.log" and e["payload"]["step_id"] == "draft" for e in follower.events)

    await eventually(drafting, within_s=30, what="the draft being written")
    await node.kill()
    await machine.start("node", port=port)
    waiting = await stack.until(run_id, "paused", within_s=30)
    assert (waiting["paused_reason"], waiting["current_step_index"]) == ("awaiting_approval", 4)
    asked = waiting["steps_state"]["publish"]["approval"]
    assert asked["risk"] == "high"  # its server says that it is destructive, so the digest must be named
    said = {"step_id": "publish", "digest": asked["digest"]}
    assert (await stack.decide(run_id, "approve", said)).status == 200
    run = await stack.until(run_id, "completed")
    statuses = {name: state["status"] for name, state in run["steps_state"].items()}
    success = dict.fromkeys(("history", "clock", "draft", "publish"), "success")
    assert statuses == success | {"check": "failed"}
    assert [execution.tool_name for execution in machine.gateway.ledger] == [
        spec_step["tool_config"]["tool_name"] for spec_step in spec["steps"]
    ]
    assert (out / "RELEASE_NOTES.md").read_text().startswith("# Release notes\n")
    await follower.end()
    follower.assert_saw(await assert_whole(stack, run_id))
