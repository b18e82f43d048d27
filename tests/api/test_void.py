"""What was approved is what runs, or nothing does: looked at again before the call, and voided where it became worse.

A hold keeps each approved call back, so that something can change between the approval and the call.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from tests.api.case import COUNTED, DESTRUCTIVE, READ_ONLY, Case
from tests.api.harness import Tools

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("hasty_holds")]
Change: TypeAlias = Callable[[Case], Awaitable[Any]]


async def approved_and_held(case: Case, tool: str = "counted", **terms: Any) -> tuple[str, str]:
    """A run whose call was approved and is held, and the hold."""
    run_id, approval = await case.waiting(case.manual(tool, **terms))
    hold_id = await case.hold()
    for sub in [name.removeprefix("user:") for name in terms.get("approvers", ["user:ann"])]:
        assert (await case.say(run_id, "approve", sub, digest=approval["digest"])).status == 200
    await case.until(run_id, "paused", "held")
    return run_id, hold_id


async def offered_anew(case: Case, name: str, **how: Any) -> None:
    """The agent comes back with another tool under an old name, and the node has heard of it."""
    await case.stack.gateway.disconnect(case.agent_id)
    tools = Tools(case.agent_id)
    tools.tool("counted", tools._timed(case._counted), input_schema=COUNTED)
    tools.tool(name, tools._timed(case._counted), **how)
    case.tools = tools
    await case.stack.gateway.connect(tools)
    assert case.stack.node is not None


async def _riskier(case: Case) -> None:
    await case.policy("counted", risk="high")


async def _worse_by_its_own_word(case: Case) -> None:
    await offered_anew(case, "counted", input_schema=COUNTED, annotations=DESTRUCTIVE)


async def _other_schema(case: Case) -> None:
    await offered_anew(case, "counted", input_schema={**COUNTED, "description": "otherwise"})


async def _policed(case: Case) -> None:
    await case.policy("counted", requires_approval=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_riskier, "from medium to high"),
        (_worse_by_its_own_word, "from medium to high"),
        (_other_schema, "schema has changed"),
        (_policed, "may do so any more"),
    ],
)
async def test_what_became_worse_is_asked_anew(case: Case, change: Change, why: str) -> None:
    run_id, hold_id = await approved_and_held(case)
    await change(case)
    await case.release(hold_id)
    run = await case.until(run_id, "paused", "awaiting_approval")
    assert (run["steps_state"]["a"]["approval"]["revision"], run["steps_state"]["a"]["approval"]["votes"]) == (2, [])
    *_, told = await case.events(run_id, "step.paused")
    assert why in told["voids"]
    rows = await case.stack.sql("SELECT state FROM workflow_run_approvals WHERE run_id = $1 ORDER BY revision", run_id)
    assert [row["state"] for row in rows] == ["voided", "open"]
    assert case.given == []


async def test_an_approver_who_lost_the_right_has_approved_nothing(case: Case) -> None:
    await case.policy("counted", requires_approval=True)
    run_id, hold_id = await approved_and_held(case, approvers=["user:ada"])
    await case.revoke("ada", "approve")
    await case.release(hold_id)
    await case.until(run_id, "paused", "awaiting_approval")
    assert case.given == []


async def _laxer(case: Case) -> None:
    await case.policy("counted", risk="low", writes=False, open_world=False)


async def _more_may(case: Case) -> None:
    await case.grant("ned", "approve")


async def _laxer_by_its_own_word(case: Case) -> None:
    await offered_anew(case, "counted", input_schema=COUNTED, annotations=READ_ONLY)


async def _other_tool(case: Case) -> None:
    await case.policy("ok", risk="high", requires_approval=True)


@pytest.mark.parametrize("change", [_laxer, _more_may, _laxer_by_its_own_word, _other_tool])
async def test_what_became_laxer_or_is_about_something_else_takes_nothing_away(case: Case, change: Change) -> None:
    run_id, hold_id = await approved_and_held(case)
    await change(case)
    await case.release(hold_id)
    run = await case.until(run_id, "completed")
    assert run["steps_state"]["a"]["approval"]["revision"] == 1
    assert case.given == [{"n": 1}]


async def test_a_right_that_was_lost_and_given_again_counts(case: Case) -> None:
    await case.policy("counted", requires_approval=True)
    run_id, hold_id = await approved_and_held(case, approvers=["user:ada"])
    await case.revoke("ada", "approve")
    await case.grant("ada", "approve")
    await case.release(hold_id)
    await case.until(run_id, "completed")


SPEC = "UPDATE workflow_run_specs SET snapshot = replace(snapshot::text, {})::json WHERE run_id = $1"
TAMPERED: dict[str, str] = {
    "the spec's arguments": SPEC.format("'\"n\":1', '\"n\":9'"),
    "the spec's tool": SPEC.format("'counted', 'reads'"),
    "the edited arguments": "UPDATE workflow_run_approvals SET arguments = '{\"n\": 9}' WHERE run_id = $1",
    "the digest": "UPDATE workflow_run_approvals SET digest = 'sha256:' || repeat('0', 64) WHERE run_id = $1",
    "the votes": "UPDATE workflow_run_approvals SET votes = '[]' WHERE run_id = $1",
}


@pytest.mark.parametrize("what", TAMPERED)
async def test_what_was_changed_behind_its_back_does_not_leave(case: Case, what: str) -> None:
    """In Postgres, between the approval and the call, while no node had the run in memory."""
    run_id, hold_id = await approved_and_held(case)
    await case.passive(run_id)
    await case.stack.sql(TAMPERED[what], run_id)
    await case.release(hold_id)
    await case.until(run_id, "paused", "awaiting_approval")
    assert case.given == []
    assert case.ran == []


async def test_a_revision_that_was_only_said_to_be_approved_has_no_votes(case: Case) -> None:
    run_id, _ = await case.waiting()
    await case.passive(run_id)
    await case.stack.sql("UPDATE workflow_run_approvals SET state = 'approved' WHERE run_id = $1", run_id)
    await case.stack.sql(
        "UPDATE workflow_runs SET status = 'running', paused_reason = NULL, wake_at = now() WHERE id = $1", run_id
    )
    await case.until(run_id, "paused", "awaiting_approval")
    assert case.given == []


async def test_a_call_that_failed_is_looked_at_again_before_it_is_tried_again(case: Case) -> None:
    """Approved and never sent, as the agent was away; meanwhile the approver loses the right."""
    await case.policy("counted", requires_approval=True)
    run_id, approval = await case.waiting(case.auto())
    await case.stack.gateway.disconnect(case.agent_id)
    assert (await case.say(run_id, "approve", "ada", digest=approval["digest"])).status == 200
    await case.until(run_id, "paused", "step_failed")
    await case.revoke("ada", "approve")
    await case.stack.gateway.connect(case.tools)
    assert (await case.say(run_id, "resume", "ann")).status == 200
    run = await case.until(run_id, "paused", "awaiting_approval")
    assert case.given == []
    digest = run["steps_state"]["a"]["approval"]["digest"]
    assert (await case.say(run_id, "approve", "olga", digest=digest)).status == 200
    await case.until(run_id, "completed")
    assert case.given == [{"n": 1}]
