"""Agents and Gateways that freeze, hang, fall off, flap and restart: what the run does. Tests are named by weather."""

from __future__ import annotations

import json

from tests.api.harness import Tools, step
from tests.patience import eventually, let_pass
from tests.weather.outdoors import ANSWERED_MS, BRIEFLY, ONE_STEP, Outdoors, attempt_of, count

ACK_TIMEOUT_MS = 1_000


async def test_collateral_canceled_is_unknown_because_nobody_asked(out: Outdoors) -> None:
    out.weather.change("collateral_canceled")
    out.patience(cancel_grace_ms=ANSWERED_MS)
    guilty, innocent = [await out.live.start(step("a", "slow")) for _ in range(2)]
    await out.begun(2)
    assert (await out.live.decide(guilty, "cancel")).body["status"] == "canceled"
    run = await out.paused(innocent)
    assert attempt_of(run)["error"]["code"] == "canceled_by_agent"
    assert (await out.verdict(innocent))["outcome"] == "unknown"
    assert (await out.verdict(guilty))["cancel"] == "stopped"
    assert out.ran == ["slow", "slow"]


async def test_silent_is_told_apart_by_the_ack_timeout_long_before_the_deadline(out: Outdoors) -> None:
    out.patience(ack_timeout_ms=ACK_TIMEOUT_MS)
    out.weather.change("silent")
    run_id = await out.live.start(step("a", timeout_ms=60_000))
    run = await out.paused(run_id)
    assert "never acknowledged" in attempt_of(run)["error"]["message"]
    (asked,) = await out.events(run_id, "tool.canceling")
    assert asked["reason"] == "ack_timeout"
    assert [ack["payload"]["will_cancel"] for ack in out.gateway.of("CANCEL_ACK")] == [False]
    assert out.ran == []


async def test_frozen_agent_pauses_the_run_and_its_late_run_settles_it(out: Outdoors) -> None:
    out.patience(ack_timeout_ms=ACK_TIMEOUT_MS)
    out.weather.change("frozen_agent")
    run_id = await out.live.start(step("a", timeout_ms=60_000))
    await out.paused(run_id)
    assert [asked["reason"] for asked in await out.events(run_id, "tool.canceling")] == ["ack_timeout"]
    assert out.ran == []
    out.weather.change()
    await out.settled(run_id)
    assert out.ran == ["ok"], "late, and once"


async def test_frozen_agent_runs_a_canceled_call_late_and_the_log_says_so(out: Outdoors) -> None:
    """What was written to a frozen agent cannot be taken back; the evidence is unknown until it speaks."""
    out.weather.change("frozen_agent")
    run_id = await out.live.start(step("a"), step("b"))
    await eventually(lambda: out.events(run_id, "step.progress"), what="the call being intended")
    await eventually(lambda: out.gateway._tunnels["agent-1"]._unread, what="the call being written")
    assert (await out.live.decide(run_id, "cancel")).body["status"] == "canceled"
    await eventually(lambda: out.events(run_id, "tool.result"), what="the end of the grace")
    assert (await out.verdict(run_id))["cancel"] == "unknown"
    out.weather.change()
    await out.kept(run_id, preview='"ok"')
    assert (await out.live.run(run_id))["status"] == "canceled"
    assert out.ran == ["ok"]


async def test_hanging_invoke_is_not_given_up_and_other_agents_go_on(out: Outdoors) -> None:
    """Our POST stays open past the verdict: closing it would cost the agent all its calls. The clocks decide."""
    out.patience(ack_timeout_ms=ACK_TIMEOUT_MS)
    await out.gateway.connect(Tools("other"))
    out.weather.change("hanging_invoke@agent-1")
    hanging = await out.live.start(step("a", timeout_ms=60_000))
    await eventually(lambda: count("runwarden_open_posts") == 1, what="the POST being open")
    out.patience(ack_timeout_ms=ANSWERED_MS)  # the others are acknowledged, however busy this machine is
    going = await out.live.start(*(step(f"s{number}", agent="other") for number in range(3)))
    await out.live.until(going, "completed")
    await out.paused(hanging)
    assert count("runwarden_open_posts") == 1
    assert not out.gateway.of("DISCONNECT")
    assert out.ran == ["ok"] * 3
    out.weather.change()
    await out.settled(hanging)
    assert (out.ran, count("runwarden_open_posts")) == (["ok"] * 4, 0)


async def test_hanging_invoke_keeps_its_run_resident_and_leaves_the_agents_other_calls_alone(out: Outdoors) -> None:
    running = await out.live.start(step("a", "slow"))
    await out.begun()
    out.weather.change("hanging_invoke")
    hanging = await out.live.start(step("a", timeout_ms=60_000))
    await eventually(lambda: count("runwarden_open_posts") == 1, what="the POST being open")
    out.tools.release.set()
    await out.completed(running)
    await let_pass(2 * out.live.settings.runtime.linger_s)
    rows = await out.live.sql("SELECT owner FROM workflow_runs WHERE id = $1::text::uuid", hanging)
    assert rows[0]["owner"] is not None
    out.weather.change()
    await out.completed(hanging)
    assert out.ran == ["slow", "ok"]


async def test_ghost_agent_is_unknown_since_a_502_proves_nothing(out: Outdoors) -> None:
    """The contract says offline, but a proxy in between says 502 too, after the call may have gone on."""
    before = count("runwarden_gateway_calls_total", verb="invoke", outcome="send_failed", gateway="default")
    out.patience(ack_timeout_ms=ACK_TIMEOUT_MS)
    out.weather.change("ghost_agent")
    run_id = await out.live.start(step("a", timeout_ms=60_000))
    await out.paused(run_id)
    assert count("runwarden_gateway_calls_total", verb="invoke", outcome="send_failed", gateway="default") == before + 1
    assert out.ran == []


async def test_false_disconnect_changes_nothing(out: Outdoors) -> None:
    out.weather.change("false_disconnect")
    run_id = await out.live.start(step("a", "slow"), step("b"))
    await eventually(lambda: out.gateway.of("DISCONNECT"), what="the false word")
    out.tools.release.set()
    await out.completed(run_id)
    assert await out.story(run_id) == ["run.created", *ONE_STEP, *ONE_STEP, "run.completed"]
    assert out.ran == ["slow", "ok"]


async def test_resent_result_is_waited_for(out: Outdoors) -> None:
    out.weather.change("resent_result")
    run_id = await out.live.start(step("a"))
    run = await out.completed(run_id)
    assert attempt_of(run)["ok"] is True
    assert out.gateway.of("DISCONNECT")
    assert out.ran == ["ok"]


async def test_tunnel_cut_is_unknown_because_the_tool_may_have_done_part_of_its_work(out: Outdoors) -> None:
    out.weather.change("tunnel_cut")
    run_id = await out.live.start(step("a", "slow"), step("b"))
    run = await out.paused(run_id)
    assert attempt_of(run)["error"]["code"] == "canceled_by_agent"
    assert [interval.how for interval in out.tools.intervals] == ["canceled"]
    assert out.ran == ["slow"]


async def test_agent_killed_is_waited_for_until_the_deadline(out: Outdoors) -> None:
    out.weather.change("agent_killed")
    run_id = await out.live.start(step("a", "slow", **BRIEFLY))
    await out.paused(run_id)
    told = await out.verdict(run_id)
    assert (told["outcome"], told["duration_ms"] >= BRIEFLY["timeout_ms"]) == ("unknown", True)
    out.weather.change()
    await eventually(lambda: len(out.gateway.of("TOOLS")) == 2, what="the agent's return")
    await out.completed(await out.live.start(step("a")))
    assert out.ran == ["slow", "ok"]


async def test_oversize_result_never_comes_and_the_deadline_decides(out: Outdoors) -> None:
    out.weather.change("oversize_result")
    run_id = await out.live.start(step("a", "big", timeout_ms=1_000))
    await out.paused(run_id)
    assert len(out.gateway.of("DISCONNECT")) >= 2, "the agent flaps meanwhile"
    assert not out.gateway.of("RESULT")
    assert out.ran == ["big"]


async def test_oversize_invoke_is_never_acknowledged_nor_repeated(out: Outdoors) -> None:
    out.patience(ack_timeout_ms=ACK_TIMEOUT_MS)
    out.weather.change("oversize_invoke")
    run_id = await out.live.start(step("a", timeout_ms=60_000))
    await out.paused(run_id)
    assert [asked["reason"] for asked in await out.events(run_id, "tool.canceling")] == ["ack_timeout"]
    assert out.ran == []


async def test_gateway_restart_in_the_middle_of_a_call_is_unknown_and_the_next_call_is_heard(out: Outdoors) -> None:
    """The agent gave the call up and says so once it is back: published, or found in the store after the gap."""
    out.weather.change("gateway_restart")
    run_id = await out.live.start(step("a", "slow"))
    run = await out.paused(run_id)
    assert attempt_of(run)["error"]["code"] == "canceled_by_agent"
    assert not out.gateway.of("DISCONNECT")
    await out.completed(await out.live.start(step("a")))
    assert out.ran == ["slow", "ok"]


async def test_gateway_restart_without_a_result_store_costs_no_more_than_the_deadline(out: Outdoors) -> None:
    out.weather.change("gateway_restart", "no_result_store")
    run_id = await out.live.start(step("a", "slow", timeout_ms=1_500))
    await out.paused(run_id)
    assert (await out.verdict(run_id))["outcome"] == "unknown"
    assert out.ran == ["slow"]


async def test_plain_404_proves_that_nothing_was_sent_but_is_not_taken_for_an_offline_agent(out: Outdoors) -> None:
    """Whoever answers so is no Gateway or not at this path: a fault of the set-up, told as such, and nothing ran."""
    out.weather.change("plain_404")
    run_id = await out.live.start(step("a"))
    run = await out.live.until(run_id, "paused")
    assert run["paused_reason"] == "step_failed"
    assert attempt_of(run)["error"]["code"] == "bad_gateway_url"
    assert (await out.verdict(run_id))["outcome"] == "unsent"
    assert "agent_offline" not in json.dumps(run)
    assert out.ran == []
    out.weather.change()
    assert (await out.live.decide(run_id, "resume")).status == 200
    await out.completed(run_id)
    assert out.ran == ["ok"]
