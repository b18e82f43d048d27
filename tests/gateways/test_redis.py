"""Two Gateways over a Redis of theirs: either ear is enough, and no line is heard twice."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis.asyncio import Redis

from tests.api.harness import step
from tests.cluster.harness import runner_of
from tests.gateways.world import World, count
from tests.patience import eventually, let_pass

ENVELOPES = "runwarden_ingest_envelopes_total"


def redis_of(world: World) -> Redis:
    assert world.server is not None
    return Redis.from_url(world.server.url)


async def groups_of(world: World, gateway: str) -> bool:
    """Whether the Gateway reads its commands."""
    async with redis_of(world) as redis:
        return bool(await redis.exists(f"bridge:cmd:{gateway}"))


@pytest.mark.parametrize("older", ["a", "*"])
async def test_a_run_over_both_gateways_logs_each_line_once_though_each_event_comes_twice(
    shared: World, older: str
) -> None:
    """Whichever ear has held its role for longer: the machine orders lines by the term of who heard them."""
    runner_of(shared.live)._hearing.ears[older]._term = 1
    both = [count(ENVELOPES, gateway=name, type="CHUNK") for name in "a*"]
    run_id = await shared.live.start(step("one", "streaming", arguments={"lines": 40}), step("two", agent="agent-2"))
    await shared.live.at_rest(run_id, "completed", "two")
    await eventually(lambda: count(ENVELOPES, gateway="*", type="CHUNK") >= both[1] + 42, what="the chunks by Redis")
    said = [f"{number:06d} ".ljust(20, ".") for number in range(40)]
    assert await shared.log_lines(run_id) == ["running tool: streaming", *said, "running tool: ok"]
    assert shared.ran() == [("a", "streaming"), ("b", "ok")]
    shared.never_twice()


async def test_an_agent_that_moves_in_mid_run_is_found_by_its_key(shared: World) -> None:
    run_id = await shared.live.start(step("one"), step("wait", approval_policy="manual"), step("last"))
    await shared.live.until(run_id, "paused")
    await shared.move("agent-1", "b")
    await shared.live.decide(run_id, "approve", {"step_id": "wait"})
    await shared.live.until(run_id, "completed")
    assert shared.ran() == [("a", "ok"), ("b", "ok"), ("b", "ok")]


async def test_a_stream_that_brings_nothing_costs_the_log_lines_and_no_result(shared: World) -> None:
    shared.gateways["a"].mute = True
    run_id = await shared.live.start(step("one"), step("two", "is_error", on_error="continue"), step("three"))
    await shared.live.until(run_id, "completed")
    assert len(shared.ran()) == 3
    assert await shared.log_lines(run_id) == []
    shared.never_twice()


async def test_runs_go_on_while_a_gateways_stream_cannot_be_opened_and_its_redis_lives(shared: World) -> None:
    shared.gateways["a"].closed = True
    shared.cut_streams("a")
    await shared.heard(a=False, b=True, redis=True)
    run_id = await shared.live.start(step("one"), step("two"))
    await shared.live.until(run_id, "completed", within_s=15)  # less than two calls take to be given up
    assert "tool.unsent" not in [event["event_type"] for event in await shared.live.log(run_id)]


async def test_a_result_that_stands_only_in_the_redis_is_found_by_an_inquiry(shared: World) -> None:
    run_id = await shared.live.start(step("one", "slow"), step("two"))
    await shared.begun("agent-1", "slow")
    req_id = shared.gateways["a"].ledger[0].req_id
    await shared.gateways["a"].disconnect("agent-1")  # the call ends without a RESULT
    told = {"v": 1, "type": "RESULT", "agent_id": "agent-1", "req_id": req_id}
    async with redis_of(shared) as redis:
        payload = {"ok": True, "result_json": {"content": [{"type": "text", "text": "stored"}]}}
        await redis.set(f"bridge:result:{req_id}", json.dumps(told | {"payload": payload}), ex=60)
    await shared.connect("agent-1", "b")
    shared.cut_streams("a")  # a gap: what became of it?
    await shared.live.until(run_id, "completed")
    assert shared.ran() == [("a", "slow"), ("b", "ok")]


async def test_a_killed_subscription_is_a_gap_that_is_noticed_mended_and_asked_about(shared: World) -> None:
    answered = count("runwarden_gateway_calls_total", verb="inquire", outcome="answered", gateway="")
    run_id = await shared.live.start(step("one", "slow"), step("two"))
    await shared.begun("agent-1", "slow")
    async with redis_of(shared) as redis:
        for one in await redis.client_list(_type="pubsub"):
            await redis.client_kill_filter(_id=one["id"])
    await eventually(
        lambda: count("runwarden_gateway_calls_total", verb="inquire", outcome="answered", gateway="") > answered,
        what="an inquiry",
    )
    await shared.heard(redis=True)
    shared.agents["agent-1"].release.set()
    await shared.live.until(run_id, "completed")


async def test_after_a_flush_the_lists_say_where_the_agents_are(shared: World) -> None:
    async with redis_of(shared) as redis:
        await redis.flushall()
    run_id = await shared.live.start(step("one"), step("two", agent="agent-2"), step("three"))
    await shared.live.until(run_id, "completed")
    assert shared.ran() == [("a", "ok"), ("a", "ok"), ("b", "ok")]


async def test_ten_seconds_without_the_gateways_redis_lose_nothing(shared: World) -> None:
    """Events are late and come by the streams; results are neither stored nor published, and need not be."""
    assert shared.server is not None
    waiting = await shared.live.start(step("one", "slow", agent="agent-2"), step("two", agent="agent-2"))
    await shared.begun("agent-2", "slow")
    await asyncio.to_thread(shared.server.stop)
    await shared.heard(redis=False, a=True, b=True)
    during = await shared.live.start(step("one"), step("two", agent="agent-2"))
    await shared.live.until(during, "completed", within_s=15)  # as above
    shared.agents["agent-2"].release.set()
    await shared.live.until(waiting, "completed")
    await let_pass(10)
    await asyncio.to_thread(shared.server.start)
    await shared.heard(redis=True)
    after = await shared.live.start(step("one"), step("two", agent="agent-2"))
    await shared.live.until(after, "completed")
    shared.never_twice()


async def test_the_agent_of_a_gateway_that_died_is_called_where_it_went(shared: World) -> None:
    await shared.gateways["a"].stop()
    await shared.connect("agent-1", "b")
    run_id = await shared.live.start(step("one"), step("two", agent="agent-2"))
    await shared.live.until(run_id, "completed")
    assert shared.ran() == [("b", "ok"), ("b", "ok")]


async def test_invoke_failed_is_counted_and_proves_nothing_about_our_call(shared: World) -> None:
    """Somebody sends a CANCEL for our call through a Gateway that does not have the agent: the call goes on."""
    failed = count("runwarden_gateway_invoke_failed_total")
    await eventually(lambda: groups_of(shared, "b"), what="b reading commands")
    run_id = await shared.live.start(step("one", "slow"), step("two"))
    await shared.begun("agent-1", "slow")
    req_id = shared.gateways["a"].ledger[0].req_id
    told = {"v": 1, "type": "CANCEL", "agent_id": "agent-1", "req_id": req_id, "payload": {}}
    async with redis_of(shared) as redis:
        await redis.xadd("bridge:cmd:b", {"envelope": json.dumps(told)})
    await eventually(lambda: count("runwarden_gateway_invoke_failed_total") == failed + 1, what="INVOKE_FAILED")
    run = await shared.live.run(run_id)
    assert run["status"] == "running"
    shared.agents["agent-1"].release.set()
    await shared.live.until(run_id, "completed")
    assert "tool.unsent" not in [event["event_type"] for event in await shared.live.log(run_id)]
    shared.never_twice()


async def test_a_result_that_comes_by_both_ears_ends_the_attempt_once(shared: World) -> None:
    run_id = await shared.live.start(*[step(f"s{number}") for number in range(5)])
    await shared.live.at_rest(run_id, "completed", "s4")
    ended = [event for event in await shared.live.log(run_id) if event["event_type"] == "tool.result"]
    assert len(ended) == 5
    assert not [event for event in await shared.live.log(run_id) if event["event_type"] == "tool.evidence"]
