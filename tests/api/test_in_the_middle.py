"""What changes in the middle of a run: grants, holds, policies; and what of the world is away when they are asked.

The rows of *Who may do what* in docs/failure-contract.md.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.api.harness import AGENT, Stack, Tools, step
from tests.api.test_agents import AGENTS, bound, granted
from tests.patience import eventually


async def paused(live: Stack, run_id: str, reason: str, sub: str = "ann") -> dict[str, Any]:
    """The run, once it is paused for this reason and, if it asks, what exactly waits is known."""

    async def there() -> dict[str, Any] | None:
        run = await live.run(run_id, sub=sub)
        return run if run["paused_reason"] == reason else None

    found = await eventually(there, what=f"{run_id} being paused as {reason}")
    assert found is not None
    return found


async def approve(live: Stack, run: dict[str, Any], sub: str = "ann") -> None:
    digest = run["steps_state"]["s"]["approval"]["digest"]
    said = await live.decide(run["run_id"], "approve", {"step_id": "s", "digest": digest}, sub=sub)
    assert said.status == 200, said.body


async def test_a_grant_revoked_in_the_middle_pauses_before_the_next_call(strict: Stack) -> None:
    await bound(strict, AGENT, "ann")
    grant = await granted(strict, "user:bob", "use")
    run_id = await strict.start(step("first", "slow"), step("second"), sub="bob")
    await eventually(lambda: strict.tools.running == ["slow"], what="the first call")
    gone = await strict.ask("DELETE", f"{AGENTS}/{AGENT}/grants/{grant}")
    assert gone.status == 200, gone.body
    strict.tools.release.set()
    run = await paused(strict, run_id, "agent_unauthorized", "bob")
    assert (run["steps_state"]["first"]["status"], run["error_code"]) == ("success", "agent_unauthorized")
    assert AGENT in run["error_message"]
    assert [call.tool for call in strict.tools.intervals] == ["slow"]
    still = await strict.decide(run_id, "resume", sub="bob")
    assert (still.status, still.body["paused_reason"]) == (200, "agent_unauthorized")
    await granted(strict, "user:bob", "use")
    resumed = await strict.decide(run_id, "resume", sub="bob")
    assert (resumed.status, resumed.body["paused_reason"]) == (200, None), "a node never bars by what stood before"

    async def over() -> bool:
        return bool((await strict.run(run_id, sub="bob"))["status"] == "completed")

    await eventually(over, what="the run going on")


async def test_a_hold_lets_no_call_leave_and_its_release_lets_the_run_go_on(strict: Stack) -> None:
    await bound(strict, AGENT, "ann")
    said = {"scope": "agent", "target": AGENT, "reason": "it smokes"}
    hold = await strict.post("/v1/holds", said)
    assert hold.status == 200, hold.body
    run_id = await strict.start(step("s"))
    run = await paused(strict, run_id, "held")
    assert ("it smokes" in run["error_message"], strict.tools.intervals) == (True, [])
    assert (await strict.decide(run_id, "resume")).body["code"] == "held"
    await strict.post(f"/v1/holds/{hold.body['hold_id']}/release")
    await strict.until(run_id, "completed")


async def test_a_policy_that_changes_the_verdict_voids_the_approval_and_asks_anew(strict: Stack) -> None:
    await bound(strict, AGENT, "ann")
    hold = await strict.post("/v1/holds", {"scope": "agent", "target": AGENT, "reason": "not yet"})
    run_id = await strict.start(step("s", approval_policy="manual"))
    await approve(strict, await paused(strict, run_id, "awaiting_approval"))
    await paused(strict, run_id, "held")
    policy = {"tools": "ok", "risk": "high"}
    assert (await strict.ask("POST", "/v1/tool-policies", sub="root", json=policy)).status == 200
    await strict.post(f"/v1/holds/{hold.body['hold_id']}/release")
    run = await paused(strict, run_id, "awaiting_approval")
    assert (run["steps_state"]["s"]["approval"]["revision"], strict.tools.intervals) == (2, [])
    (void,) = [event["payload"]["voids"] for event in await strict.log(run_id) if "voids" in event["payload"]]
    assert "from medium to high" in void
    rows = await strict.sql("SELECT state FROM workflow_run_approvals ORDER BY revision")
    assert [row["state"] for row in rows] == ["voided", "open"]
    await approve(strict, run)
    await strict.until(run_id, "completed")


async def test_while_authority_cannot_be_read_no_call_is_intended(
    strict: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = Tools("elsewhere")
    await strict.gateway.connect(elsewhere)
    for agent in (AGENT, "elsewhere"):
        await bound(strict, agent, "ann")
    run_id = await strict.start(step("a", "slow"), step("b"), step("c", agent="elsewhere"))
    await eventually(lambda: strict.tools.running == ["slow"], what="the first call")
    await strict.sql("ALTER TABLE agent_grants RENAME TO out_of_reach")
    with caplog.at_level(logging.WARNING, logger="runwarden"):
        strict.tools.release.set()
        await eventually(lambda: "turns wait for what stands about" in caplog.text, what="a node that cannot read")
    run = await strict.run(run_id)
    assert (run["steps_state"]["c"]["status"], elsewhere.intervals) == ("pending", [])
    await strict.sql("ALTER TABLE out_of_reach RENAME TO agent_grants")
    await strict.until(run_id, "completed")
    assert [call.tool for call in elsewhere.intervals] == ["ok"]


async def test_without_a_gateway_an_edit_is_503_and_what_waits_goes_on_waiting(strict: Stack) -> None:
    await bound(strict, AGENT, "ann")
    asking = step("s", approval_policy="manual", approval={"allow_edit": True})
    seen = (await paused(strict, await strict.start(asking), "awaiting_approval"))["steps_state"]["s"]["approval"]
    assert seen["schema_hash"] is not None
    await strict.gateway.stop()
    run_id = await strict.start(asking | {"tool_config": asking["tool_config"] | {"tool_name": "slow"}})
    run = await paused(strict, run_id, "awaiting_approval")
    edited = await strict.decide(run_id, "edit", {"step_id": "s", "arguments": {"a": 1}})
    assert (edited.status, edited.body["code"]) == (503, "gateway_unavailable")
    assert (await strict.run(run_id))["steps_state"] == run["steps_state"]
    assert (await strict.decide(run_id, "reject", {"step_id": "s"})).status == 200


@pytest.mark.parametrize("on_expiry", ["reject", "stay"])
async def test_what_nobody_decides_in_time_is_expired_or_waits_on(strict: Stack, on_expiry: str) -> None:
    await bound(strict, AGENT, "ann")
    terms = {"quorum": 2, "approvers": ["user:ann", "user:bob"], "expires_in_ms": 4_000, "on_expiry": on_expiry}
    run_id = await strict.start(step("s", approval_policy="manual", approval=terms))
    await approve(strict, await paused(strict, run_id, "awaiting_approval"))

    async def expired() -> list[Any]:
        return [event["payload"] for event in await strict.log(run_id) if event["event_type"] == "step.expired"]

    (told,) = await eventually(expired, what="the end of its time")
    assert told["rejects"] is (on_expiry == "reject")
    run = await strict.until(run_id, "failed" if told["rejects"] else "paused")
    state = run["steps_state"]["s"]
    if told["rejects"]:
        assert (run["error_code"], state["status"], state["approval"]["state"]) == ("approval_expired",) + (
            "expired",
        ) * 2
        return
    assert (run["paused_reason"], state["approval"]["votes"]) == ("awaiting_approval", [])
    assert state["approval"]["expired_at"]
    for sub in ("ann", "bob"):
        await approve(strict, run, sub)
    await strict.until(run_id, "completed")
