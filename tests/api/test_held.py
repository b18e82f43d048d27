"""The emergency stop where it counts: nothing leaves for what is held, runs wait visibly, and go on by themselves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tests.api.case import Case, outcome
from tests.api.harness import Stack, serving, step
from tests.patience import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
SCOPES: dict[str, tuple[str, dict[str, str]]] = {
    "an agent, by its owner": ("olga", {}),
    "an agent, by an admin": ("root", {}),
    "a user": ("root", {"scope": "user", "target": "ann"}),
    "everything": ("root", {"scope": "everything"}),
}


@pytest.mark.parametrize("what", SCOPES)
async def test_nothing_leaves_while_it_is_held_and_a_passive_run_goes_on_by_its_release(case: Case, what: str) -> None:
    by, of = SCOPES[what]
    hold_id = await case.hold(by, **of)
    run_id = await case.run(case.auto("ok"))
    run = await case.until(run_id, "paused", "held")
    assert run["error_code"] == "held"
    assert all(word in run["error_message"] for word in (by, "it smokes"))
    (told,) = await case.events(run_id, "step.paused")
    assert (told["paused_reason"], told["message"]) == ("held", run["error_message"])
    assert outcome(await case.say(run_id, "resume", "ann")) == (409, "held")
    await case.passive(run_id)
    assert (case.ran, (await case.stack.run(run_id))["steps_state"]["a"]["attempts"]) == ([], [])
    await case.release(hold_id, by)
    await case.until(run_id, "completed")
    assert case.ran == ["ok"]
    (told,) = await case.events(run_id, "run.resumed")
    assert told["paused_reason"] == "held"
    lines = await case.stack.sql("SELECT action, actor, outcome FROM audit_log WHERE target = $1 ORDER BY id", hold_id)
    assert [tuple(line) for line in lines] == [("hold.set", by, "applied"), ("hold.released", by, "applied")]


async def test_a_run_in_the_middle_ends_its_call_and_makes_no_other(case: Case) -> None:
    run_id = await case.run(case.auto("slow"), case.auto("ok", "b"))
    await eventually(lambda: case.tools.running == ["slow"], what="the tool running")
    hold_id = await case.hold()
    case.tools.release.set()
    run = await case.until(run_id, "paused", "held")
    assert run["steps_state"]["a"]["status"] == "success"
    await case.release(hold_id)
    await case.until(run_id, "completed")
    assert case.ran == ["slow", "ok"]


async def test_what_is_not_held_goes_on(case: Case) -> None:
    other = await Case(case.stack).open()
    await case.hold()
    await case.hold("root", scope="user", target="bob")
    await other.until(await other.run(other.auto("ok")), "completed")
    await case.until(await case.run(case.auto("ok")), "paused", "held")


@pytest.mark.parametrize("first", [0, 1])
async def test_of_two_holds_each_must_be_released_and_the_run_says_which_is_left(case: Case, first: int) -> None:
    holds = [(await case.hold(), "olga"), (await case.hold("root", scope="user", target="ann"), "root")]
    run_id = await case.run(case.auto("ok"))
    await case.until(run_id, "paused", "held")
    await case.release(*holds.pop(first))
    (left, by), *_ = holds

    async def told() -> bool:
        return ((await case.stack.run(run_id))["error_message"] or "").startswith(f"{by} holds")

    await eventually(told, what="the hold that is left being told")
    assert case.ran == []
    await case.release(left, by)
    await case.until(run_id, "completed")


async def test_a_held_run_can_be_approved_and_canceled(case: Case) -> None:
    hold_id = await case.hold()
    runs = [(await case.waiting())[0] for _ in range(2)]
    for run_id in runs:
        assert (await case.say(run_id, "approve", "ann")).status == 200
        await case.until(run_id, "paused", "held")
    assert (await case.say(runs[0], "cancel", "ann")).status == 200
    await case.release(hold_id)
    await case.until(runs[1], "completed")
    await case.until(runs[0], "canceled", "user_cancel")
    assert case.ran == ["counted"]


async def test_a_call_that_runs_while_everything_is_held_can_be_canceled(case: Case) -> None:
    run_id = await case.run(case.auto("slow"))
    await eventually(lambda: case.tools.running == ["slow"], what="the tool running")
    hold_id = await case.hold("root", scope="everything")
    assert (await case.say(run_id, "cancel", "ann")).status == 200
    await eventually(lambda: [one.how for one in case.tools.intervals] == ["canceled"], what="the tool being stopped")
    await case.release(hold_id, "root")


async def test_a_hold_is_one_for_all_nodes(case: Case) -> None:
    """Runs of both nodes: held by a word said to one of them, and let go by a word said to the other."""
    settings = case.stack.settings
    runtime = settings.runtime.model_copy(update={"node_name": "node-2"})
    async with serving(replace(settings, runtime=runtime)) as second:
        both = (case.stack, _at(case.stack, second.url))
        hold_id = await case.hold("root", scope="everything")
        steps = [step(name, "ok", agent=case.agent_id) for name in "abc"]
        runs = await asyncio.gather(*(both[n % 2].start(*steps) for n in range(12)))
        for run_id in runs:
            await case.until(run_id, "paused", "held")
        assert case.ran == []
        released = await both[1].post(f"/v1/holds/{hold_id}/release", sub="root")
        assert released.status == 200
        for run_id in runs:
            await case.until(run_id, "completed")
    assert case.ran == ["ok"] * 36


def _at(stack: Stack, url: str) -> Stack:
    """The same, asked at another node."""
    return Stack(url, stack.http, stack.gateway, stack.tools, stack.database, stack.settings, tokens=stack.tokens)


async def test_two_at_once_leave_one_hold_and_one_release(case: Case) -> None:
    holds = await asyncio.gather(*(case.hold(sub) for sub in ("olga", "olga", "olga")))
    assert len(set(holds)) == 1
    answers: list[Any] = await asyncio.gather(
        *(case.stack.post(f"/v1/holds/{holds[0]}/release", sub="olga") for _ in range(3))
    )
    assert {answer.status for answer in answers} == {200}
    lines = await case.stack.sql("SELECT action FROM audit_log WHERE target = $1 ORDER BY id", holds[0])
    assert [line["action"] for line in lines] == ["hold.set", "hold.released"]
