"""Two Gateways without Redis: each call at the one that holds the agent, and one Gateway's death is its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from tests.api.harness import step
from tests.gateways.world import World, count
from tests.patience import eventually, let_pass

Open = Callable[..., AbstractAsyncContextManager[World]]


async def test_each_step_is_called_at_the_gateway_that_holds_its_agent(plain: World) -> None:
    run_id = await plain.live.start(step("one"), step("two", agent="agent-2"), step("three"))
    await plain.live.until(run_id, "completed")
    assert plain.ran() == [("a", "ok"), ("a", "ok"), ("b", "ok")]
    plain.never_twice()


async def test_an_agent_that_moves_in_mid_run_is_called_where_it_went(plain: World) -> None:
    run_id = await plain.live.start(step("one"), step("wait", approval_policy="manual"))
    await plain.live.until(run_id, "paused")
    await plain.move("agent-1", "b")
    await plain.live.decide(run_id, "approve", {"step_id": "wait"})
    await plain.live.until(run_id, "completed")
    assert plain.ran() == [("a", "ok"), ("b", "ok")]
    assert "tool.unsent" not in [event["event_type"] for event in await plain.live.log(run_id)]


async def test_an_agent_on_no_gateway_is_offline_and_the_step_fails(plain: World) -> None:
    run_id = await plain.live.start(step("one", agent="nobody"))
    run = await plain.live.until(run_id, "paused")
    attempt = run["steps_state"]["one"]["attempts"][0]
    assert (run["paused_reason"], attempt["error"]["code"]) == ("step_failed", "agent_offline")
    assert plain.ran() == []


async def test_one_gateway_away_stops_no_run_on_the_other_and_readyz_names_it(plain: World) -> None:
    await plain.gateways["a"].stop()
    await plain.heard(a=False, b=True)
    checks = await plain.checks()
    assert plain.gateways["a"].url in checks["gateway a"]
    assert "no tool can be called there" in checks["gateway a"]
    steps = [step(f"s{number}", agent="agent-2") for number in range(3)]
    run_id = await plain.live.start(*steps)
    await plain.live.until(run_id, "completed")
    assert "tool.unsent" not in [event["event_type"] for event in await plain.live.log(run_id)]


async def test_a_step_on_a_living_gateway_does_not_wait_for_the_next_ones_dead_one(open_world: Open) -> None:
    async with open_world(step_patience_s=0.5) as plain:
        await plain.gateways["a"].stop()
        await plain.heard(a=False)
        run_id = await plain.live.start(step("lives", agent="agent-2"), step("dead"))
        run = await plain.live.until(run_id, "paused")
        assert [attempt["ok"] for attempt in run["steps_state"]["lives"]["attempts"]] == [True]
        types = [event["event_type"] for event in await plain.live.log(run_id)]
        assert types.index("step.completed") < types.index("tool.unsent")
        assert run["steps_state"]["dead"]["attempts"][0]["error"]["code"] == "gateway_unavailable"
        assert plain.ran() == [("b", "ok")]


async def test_an_agent_of_a_dead_gateway_is_waited_for_and_called_where_it_comes_back(plain: World) -> None:
    await plain.gateways["a"].stop()
    await plain.heard(a=False)
    run_id = await plain.live.start(step("one"))
    async with plain.live.watch(run_id) as watch:
        await watch.until("tool.unsent")
        await plain.connect("agent-1", "b")
        await watch.rest()
        assert "step.paused" not in watch.types
    assert plain.ran() == [("b", "ok")]


async def test_a_gateway_killed_in_mid_call_leaves_its_call_to_the_deadline_and_the_others_alone(plain: World) -> None:
    doomed = await plain.live.start(step("one", "slow", timeout_ms=1_500))
    await plain.begun("agent-1", "slow")
    await plain.gateways["a"].stop()
    other = await plain.live.start(step("two", agent="agent-2"))
    await plain.live.until(other, "completed")
    run = await plain.live.until(doomed, "paused", within_s=30)
    assert run["paused_reason"] == "outcome_unknown"
    plain.never_twice()


async def test_a_result_that_a_cut_stream_swallowed_is_found_at_the_gateway_that_stored_it(plain: World) -> None:
    """Each Gateway has its own store here, so the right one must be among those asked."""
    run_id = await plain.live.start(step("one", "slow", agent="agent-2"))
    await plain.begun("agent-2", "slow")
    with plain.gateways["b"].weather.during("lost_result"):
        plain.agents["agent-2"].release.set()
        await eventually(lambda: plain.gateways["b"].of("RESULT"), what="the result")
    plain.cut_streams("b")
    await plain.live.until(run_id, "completed")
    plain.never_twice()


async def test_where_no_gateway_stores_results_an_inquiry_says_nothing_and_the_deadline_decides(
    open_world: Open,
) -> None:
    async with open_world(results=False) as plain:
        asked = count("runwarden_gateway_calls_total", verb="inquire", outcome="unsupported", gateway="")
        run_id = await plain.live.start(step("one", "slow", agent="agent-2", timeout_ms=3_000))
        await plain.begun("agent-2", "slow")
        with plain.gateways["b"].weather.during("lost_result"):
            plain.agents["agent-2"].release.set()
            await eventually(lambda: plain.gateways["b"].of("RESULT"), what="the result")
        plain.cut_streams("b")

        def inquiries() -> float:
            now = count("runwarden_gateway_calls_total", verb="inquire", outcome="unsupported", gateway="")
            return now - asked

        await eventually(inquiries, what="an inquiry")
        run = await plain.live.until(run_id, "paused", within_s=30)
        assert run["paused_reason"] == "outcome_unknown"

        async def at_rest() -> bool:
            return (await plain.live.sql("SELECT owner FROM workflow_runs"))[0]["owner"] is None

        await eventually(at_rest, what="the run at rest")

        async def stands_still() -> bool:
            before = inquiries()
            await let_pass(1.0)
            return inquiries() == before

        # One look may have begun before it rested; nothing asks again and again.
        await eventually(stands_still, what="an end of the inquiries")
        plain.never_twice()


@pytest.mark.parametrize("agent", ["agent-1", "agent-2"])
async def test_a_cancel_goes_to_the_gateway_of_the_agent(plain: World, agent: str) -> None:
    run_id = await plain.live.start(step("one", "slow", agent=agent))
    await plain.begun(agent, "slow")
    assert (await plain.live.decide(run_id, "cancel")).status == 200
    await eventually(lambda: plain.gateways[plain.at[agent]].of("CANCEL_ACK"), what="the acknowledgement")
    elsewhere = "b" if plain.at[agent] == "a" else "a"
    assert not plain.gateways[elsewhere].of("CANCEL_ACK")
