"""Whoever may speak on a Gateway's stream names agents as they like; no node may end, or grow, over such a name."""

from __future__ import annotations

from daemon.runtime import sweep
from tests.patience import eventually
from tests.runtime.harness import AGENT, Rig, step


def _tools_of(agent_id: str) -> dict[str, object]:
    return {"v": 1, "type": "TOOLS", "agent_id": agent_id, "ts": 1, "payload": {"tools": []}}


async def test_no_node_ends_over_an_agent_whose_name_postgres_cannot_hold(rig: Rig) -> None:
    node = await rig.start(linger_s=0.05)
    run_id = await rig.create(step("a", "gated"))
    await rig.told(run_id, "tool.status")
    await rig.passive(run_id)
    far = await rig.pool.fetchval(
        "UPDATE workflow_runs SET wake_at = clock_timestamp() + interval '1 day' WHERE id = $1 RETURNING wake_at",
        run_id,
    )
    for name in ("evil\x00", "", AGENT):
        rig.gateway.publish(_tools_of(name))

    async def woken() -> bool:
        return not node.healthy or (await rig.row(run_id))["wake_at"] != far

    await eventually(woken, what="the run being woken, because its agent has returned")
    assert node.healthy
    rig.tools.gate.set()
    await rig.until(run_id, "completed")


async def test_no_more_names_are_kept_than_so_many_and_none_that_no_run_can_have(rig: Rig) -> None:
    asked = (await rig.start()).runner._sweep
    for number in range(sweep.RETURNED + 10):
        asked.returned(f"agent-{number}")
    asked.returned("x" * 256)
    assert len(asked._returned) == sweep.RETURNED
    assert "x" * 256 not in asked._returned
