"""The bounds on calls: a blocked agent holds no more than its share, and who waits for a place has sent nothing."""

import asyncio

import pytest
from msgspec.structs import replace

from gateway_client import GatewayClient, Invocation, MaybeSent, NotSent
from gateway_client.turnstile import Turnstile
from tests.patience import eventually

CALL = Invocation(req_id="r1", agent_id="agent-1", tool_name="demo__add", arguments={}, timeout_ms=0, stream=True)
ACCEPTED = {"req_id": "r1", "status": "accepted"}


async def swallow_all(gateway, peer):
    """Takes the call and never answers."""
    await gateway.take(peer)
    await peer.gone()


def call_of(agent_id):
    return replace(CALL, agent_id=agent_id)


async def never_to_frozen(gateway, peer):
    """Takes every call and answers those for agents that are not frozen."""
    while request := await gateway.take(peer):
        if request.json["agent_id"] != "frozen":
            await peer.answer(202, ACCEPTED)


async def test_a_blocked_agent_takes_its_share_of_the_connections_and_its_neighbours_have_the_rest(serve):
    gateway = await serve(never_to_frozen)
    async with GatewayClient(gateway.url, max_connections=3, calls_per_agent=2, queue_timeout_s=0.3) as client:
        stuck = [asyncio.create_task(client.invoke(call_of("frozen"))) for _ in range(10)]
        for _ in range(2):
            await gateway.arrived.get()
        for _ in range(20):
            await client.invoke(call_of("healthy"))
        await eventually(lambda: sum(call.done() for call in stuck) == 8, what="the eight that found no place")
        refused = [fault for call in stuck if call.done() and (fault := call.exception())]
        assert {(type(fault), fault.code) for fault in refused} == {(NotSent, "agent_busy")}
    assert sum(request.json["agent_id"] == "frozen" for request in gateway.requests) == 2
    assert len(gateway.requests) == 22
    open_ones = await asyncio.gather(*stuck, return_exceptions=True)
    assert sum(isinstance(fault, MaybeSent) for fault in open_ones) == 2


async def test_who_finds_no_connection_in_time_is_not_sent(serve):
    gateway = await serve(swallow_all)
    async with GatewayClient(gateway.url, max_connections=1, calls_per_agent=1, queue_timeout_s=0.05) as client:
        stuck = asyncio.create_task(client.invoke(call_of("frozen")))
        await gateway.arrived.get()
        with pytest.raises(NotSent) as caught:
            await client.invoke(call_of("healthy"))
        assert caught.value.code == "gateway_unavailable"
        assert not stuck.done()
    with pytest.raises(MaybeSent):
        await stuck
    assert len(gateway.requests) == 1


async def test_those_who_wait_for_a_place_begin_in_order_when_one_is_free(serve):
    go = asyncio.Event()

    async def script(gateway, peer):
        while await gateway.take(peer):
            await go.wait()
            await peer.answer(202, ACCEPTED)

    gateway = await serve(script)
    async with GatewayClient(gateway.url, calls_per_agent=1) as client:
        calls = [asyncio.create_task(client.invoke(replace(CALL, req_id=f"r{number}"))) for number in range(5)]
        await gateway.arrived.get()
        go.set()
        await asyncio.gather(*calls)
    assert [request.json["req_id"] for request in gateway.requests] == ["r0", "r1", "r2", "r3", "r4"]
    assert gateway.most_open == 1


async def test_when_no_more_is_begun_those_who_wait_are_not_sent_at_once_and_open_calls_go_on(serve):
    gateway = await serve(never_to_frozen)
    async with GatewayClient(gateway.url, calls_per_agent=1) as client:
        stuck, queued = (asyncio.create_task(client.invoke(call_of("frozen"))) for _ in range(2))
        await gateway.arrived.get()
        client.begin_no_more()
        for attempt in (queued, client.invoke(call_of("healthy"))):
            with pytest.raises(NotSent) as caught:
                await attempt
            assert caught.value.code == "not_permitted"
        assert not stuck.done()
        await client.cancel("r1", "frozen-no-more")  # cancels are still sent
    with pytest.raises(MaybeSent):
        await stuck


async def test_a_place_given_to_who_gives_up_in_the_same_moment_goes_to_the_next_in_order():
    turnstile = Turnstile(in_all=1, per_agent=None, patience_s=None)
    await turnstile.enter("a")
    gave_up, first, second, third = [asyncio.create_task(turnstile.enter(agent)) for agent in ("b", "c", "d", "e")]
    await asyncio.sleep(0)
    gave_up.cancel()
    turnstile.leave("a")
    first.cancel()
    await asyncio.wait([gave_up, first])
    assert gave_up.cancelled()
    assert first.cancelled()
    await second
    assert not turnstile.enter_at_once("f")
    turnstile.leave("d")
    await third
    turnstile.leave("e")
    assert turnstile.enter_at_once("f")


async def test_who_is_refused_while_their_patience_ends_hinders_nobody_else_from_being_refused():
    """asyncio lets no timeout be moved that has struck and was not felt yet: here the second shut comes just then."""
    turnstile = Turnstile(in_all=1, per_agent=None, patience_s=None)
    await turnstile.enter("a")
    waiting = [asyncio.create_task(turnstile.enter(agent)) for agent in ("b", "c")]
    await asyncio.sleep(0)
    for _ in range(5):
        turnstile.shut()
        await asyncio.sleep(0)
    told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [(type(fault), fault.code) for fault in told] == [(NotSent, "not_permitted")] * 2
