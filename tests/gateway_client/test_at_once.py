"""Calls that are begun without a task: the same promises as `invoke`, or nothing is done at all."""

import asyncio

import pytest

from gateway_client import GatewayClient, Gateways, Invocation, MaybeSent, NotSent

CALL = Invocation(req_id="r1", agent_id="agent-1", tool_name="demo__add", arguments={}, timeout_ms=0, stream=True)
ACCEPTED = {"req_id": "r1", "status": "accepted"}


def answering(status, body):
    """The first call is accepted, all later ones are answered like this."""

    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.answer(202, ACCEPTED)
        while await gateway.take(peer):
            await peer.answer(status, body)

    return script


async def silent(gateway, peer):
    """The first call is accepted, the next one never answered."""
    await gateway.take(peer)
    await peer.answer(202, ACCEPTED)
    await gateway.take(peer)
    await peer.gone()


async def begin(client, *, permit=True):
    """Once a connection is idle, a call at once; answers the future and what it will tell."""
    await client.invoke(CALL)
    heard = asyncio.get_running_loop().create_future()
    return client.invoke_at_once(CALL, may_send=lambda: permit, told=heard.set_result), heard


async def test_an_accepted_call_tells_of_no_fault_and_gives_its_place_back(serve):
    gateway = await serve()
    async with GatewayClient(gateway.url, max_connections=1) as client:
        call, heard = await begin(client)
        assert call is not None
        assert await heard is None
        await client.invoke(CALL)
    assert len(gateway.requests) == 3
    assert len(gateway.peers) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind", "code"),
    [
        (404, {"error": "agent_offline"}, NotSent, "agent_offline"),
        (400, {"error": "invalid_json"}, NotSent, "invalid_request"),
        (502, {"error": "send_failed"}, MaybeSent, "send_failed"),
        (500, b"", MaybeSent, "gateway_error"),
    ],
)
async def test_a_refusal_means_what_it_means_to_invoke(serve, status, body, kind, code):
    gateway = await serve(answering(status, body))
    async with GatewayClient(gateway.url) as client:
        _, heard = await begin(client)
        fault = await heard
        assert (type(fault), fault.code) == (kind, code)


async def test_without_a_permit_nothing_is_written_and_the_place_is_free(serve):
    gateway = await serve()
    async with GatewayClient(gateway.url, max_connections=1) as client:
        with pytest.raises(NotSent) as caught:
            await begin(client, permit=False)
        assert caught.value.code == "not_permitted"
        await client.invoke(CALL)
    assert len(gateway.requests) == 2
    assert len(gateway.peers) == 1


async def test_a_permit_that_raises_leaves_nothing_behind(serve):
    gateway = await serve()
    async with GatewayClient(gateway.url, max_connections=1) as client:
        await client.invoke(CALL)
        with pytest.raises(ZeroDivisionError):
            client.invoke_at_once(CALL, may_send=lambda: 1 // 0, told=print)
        await client.invoke(CALL)
    assert len(gateway.requests) == 2


async def test_where_something_must_be_waited_for_nothing_is_done(serve):
    gateway = await serve(silent)
    async with GatewayClient(gateway.url, max_connections=1) as client:
        assert client.invoke_at_once(CALL, may_send=lambda: True, told=print) is None  # no connection yet
        call, heard = await begin(client)
        await gateway.arrived.get()
        assert client.invoke_at_once(CALL, may_send=lambda: True, told=print) is None  # no place
        call.cancel()
        assert isinstance(await heard, MaybeSent)
        client.begin_no_more()
        assert client.invoke_at_once(CALL, may_send=lambda: True, told=print) is None
    assert len(gateway.requests) == 2


async def test_a_call_given_up_ends_its_connection_and_frees_its_place(serve):
    gateway = await serve(silent)
    async with GatewayClient(gateway.url, max_connections=1) as client:
        call, heard = await begin(client)
        for _ in range(2):
            await gateway.arrived.get()
        call.cancel()
        assert (await heard).code == "connection_lost"
        await gateway.left.get()
        await client.invoke(CALL)
    assert len(gateway.requests) == 3


async def test_a_connection_that_ends_before_the_answer_is_maybe_sent(serve):
    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.answer(202, ACCEPTED)
        await gateway.take(peer)
        peer.close()

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        _, heard = await begin(client)
        fault = await heard
        assert (type(fault), fault.code) == (MaybeSent, "connection_lost")


async def test_of_several_gateways_none_is_called_at_once_and_of_one_the_fault_has_its_name(serve):
    gateway = await serve(answering(502, {"error": "send_failed"}))
    async with GatewayClient(gateway.url) as client, GatewayClient(gateway.url) as other:
        several = Gateways({"a": client, "b": other})
        await client.invoke(CALL)
        assert several.invoke_at_once(CALL, may_send=lambda: True, told=print) is None
        heard = asyncio.get_running_loop().create_future()
        Gateways({"a": client}).invoke_at_once(CALL, may_send=lambda: True, told=heard.set_result)
        assert (await heard).gateway == "a"
        with pytest.raises(NotSent) as caught:
            Gateways({"a": client}).invoke_at_once(CALL, may_send=lambda: False, told=print)
        assert caught.value.gateway == "a"
