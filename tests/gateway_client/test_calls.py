"""Calls as the Gateway sees them, and what each of its answers proves to the caller."""

from types import MappingProxyType

import pytest

from gateway_client import GatewayClient, Invocation, MaybeSent, NotSent

CALL = Invocation(
    req_id="r1",
    agent_id="agent-1",
    tool_name="demo__add",
    arguments={"a": "9007199254740993"},
    timeout_ms=0,
    stream=True,
)
ACCEPTED = {"req_id": "r1", "status": "accepted"}


def answering(*args, **kwargs):
    async def script(gateway, peer):
        while await gateway.take(peer):
            await peer.answer(*args, **kwargs)

    return script


async def test_an_accepted_call_is_written_once_and_as_the_contract_says(serve):
    gateway = await serve()
    async with GatewayClient(f"{gateway.url}/some/prefix/", "secret") as client:
        assert await client.invoke(CALL, headers={"traceparent": "00-1-2-01"}) is None
    (request,) = gateway.requests
    assert request.line == "POST /some/prefix/internal/bridge/invoke HTTP/1.1"
    assert request.headers["host"] == gateway.url.removeprefix("http://")
    assert request.headers["x-internal-token"] == "secret"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["traceparent"] == "00-1-2-01"
    assert request.json == {
        "req_id": "r1",
        "agent_id": "agent-1",
        "tool_name": "demo__add",
        "arguments": {"a": "9007199254740993"},
        "timeout_ms": 0,
        "stream": True,
    }


async def test_a_cancel_is_written_as_the_contract_says(serve):
    gateway = await serve(answering(202, {"req_id": "r1", "status": "sent"}))
    async with GatewayClient(gateway.url) as client:
        await client.cancel("r1", "agent-1", "enough")
        await client.cancel("r2", "agent-1")
    first, second = gateway.requests
    assert first.line == "POST /internal/bridge/cancel HTTP/1.1"
    assert first.json == {"req_id": "r1", "agent_id": "agent-1", "reason": "enough"}
    assert second.json == {"req_id": "r2", "agent_id": "agent-1"}
    assert "x-internal-token" not in first.headers


@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        (400, {"error": "missing_fields"}, NotSent, "invalid_request"),
        (401, b"", NotSent, "unauthorized"),
        (404, {"error": "agent_offline"}, NotSent, "agent_offline"),
        (404, b"404 page not found\n", NotSent, "bad_gateway_url"),
        (404, ["agent_offline"], NotSent, "bad_gateway_url"),
        (502, {"error": "send_failed"}, MaybeSent, "send_failed"),
        (500, b"", MaybeSent, "gateway_error"),
        (503, {"error": 7}, MaybeSent, "gateway_error"),
        (405, b"", MaybeSent, "gateway_error"),
        (302, b"", MaybeSent, "gateway_error"),
        (200, ACCEPTED, MaybeSent, "gateway_error"),
        (204, b"", MaybeSent, "gateway_error"),
    ],
)
async def test_each_answer_proves_what_the_contract_says(serve, status, body, error, code):
    gateway = await serve(answering(status, body))
    async with GatewayClient(gateway.url, "secret") as client:
        for attempt in (client.invoke(CALL), client.cancel("r1", "agent-1")):
            with pytest.raises(error) as caught:
                await attempt
            assert caught.value.code == code
            assert str(status) in str(caught.value)
            assert "secret" not in str(caught.value)
    assert len(gateway.requests) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "00-1\r\nX-Internal-Token: forged"},
        {"traceparent": "00-1\n"},
        {"trace parent": "1"},
        {"": "1"},
        {"x": "\x00"},
        {"x": "\u4f60"},
        {"Content-Length": "0"},
        {"transfer-encoding": "chunked"},
        {"X-Internal-Token": "forged"},
    ],
)
async def test_a_header_that_could_change_the_request_is_refused_before_a_connection_is_made(serve, headers):
    gateway = await serve()
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(NotSent) as caught:
            await client.invoke(CALL, headers=headers)
    assert caught.value.code == "invalid_request"
    assert not gateway.peers


def test_a_token_that_does_not_fit_into_a_header_is_refused_at_once():
    with pytest.raises(ValueError):
        GatewayClient("http://localhost", "secret\r\nEvil: yes")


@pytest.mark.parametrize("arguments", [{"x": 2**70}, {"x": object()}, {"x": "\ud800"}])
async def test_arguments_that_json_cannot_carry_are_surely_not_sent(serve, arguments):
    gateway = await serve()
    call = Invocation(req_id="r", agent_id="a", tool_name="t", arguments=arguments, timeout_ms=0, stream=False)
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(NotSent) as caught:
            await client.invoke(call)
    assert caught.value.code == "invalid_request"
    assert not gateway.peers


async def test_read_only_mappings_are_arguments_too(serve):
    gateway = await serve()
    arguments = MappingProxyType({"deep": MappingProxyType({"er": "还有"})})
    call = Invocation(req_id="r", agent_id="a", tool_name="t", arguments=arguments, timeout_ms=5, stream=False)
    async with GatewayClient(gateway.url) as client:
        await client.invoke(call)
    assert gateway.requests[0].json["arguments"] == {"deep": {"er": "还有"}}


async def test_a_large_call_arrives_whole(serve):
    gateway = await serve()
    call = Invocation(
        req_id="r", agent_id="a", tool_name="t", arguments={"x": "y" * 5_000_000}, timeout_ms=0, stream=False
    )
    async with GatewayClient(gateway.url) as client:
        await client.invoke(call)
        await client.invoke(call)
    assert [len(request.json["arguments"]["x"]) for request in gateway.requests] == [5_000_000] * 2
