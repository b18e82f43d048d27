"""The reads of the client: agents, tools and stored results, with every odd answer of the contract."""

import pytest

from gateway_client import AgentInfo, Envelope, GatewayClient, NotSent, ResultsUnsupported, ToolInfo, Unavailable

STORED = b'{"v":1,"type":"RESULT","agent_id":"a","req_id":"r1","ts":7,"payload":{"ok":true,"result_json":{"n":"1"}}}'

READS = {
    "agents": lambda client: client.agents(),
    "tools": lambda client: client.tools("agent-1"),
    "result": lambda client: client.result("r1"),
}


@pytest.fixture
def answering(serve):
    """A server that gives every request the same answer."""

    async def start(*args, **kwargs):
        async def script(gateway, peer):
            while await gateway.take(peer):
                await peer.answer(*args, **kwargs)

        return await serve(script)

    return start


async def test_agents_are_listed_and_entries_without_an_id_are_not(answering):
    entry = {"agent_id": "a", "status": "cached", "last_seen_at": 5, "connected_at": 4}
    gateway = await answering(200, {"agents": [entry, {"status": "online"}, None]})
    async with GatewayClient(f"{gateway.url}/p", "secret") as client:
        assert await client.agents() == [AgentInfo(agent_id="a", status="cached", last_seen_at=5, connected_at=4)]
    assert gateway.requests[0].line == "GET /p/internal/bridge/agents HTTP/1.1"
    assert gateway.requests[0].headers["x-internal-token"] == "secret"


async def test_tools_are_listed_with_their_hints(answering):
    entry = {
        "name": "demo__add",
        "description": "adds",
        "input_schema": {"type": "object"},
        "annotations": {"readOnlyHint": True},
        "meta": {"server": "demo", "original_tool": "add"},
    }
    gateway = await answering(200, {"agent_id": "a", "tools": [entry]})
    async with GatewayClient(gateway.url) as client:
        (tool,) = await client.tools("a/ü")
    assert tool == ToolInfo(
        name="demo__add",
        description="adds",
        input_schema={"type": "object"},
        annotations={"readOnlyHint": True},
        meta={"server": "demo", "original_tool": "add"},
    )
    assert gateway.requests[0].line == "GET /internal/bridge/agents/a%2F%C3%BC/tools HTTP/1.1"


async def test_an_agent_that_has_only_said_hello_has_no_tools(answering):
    gateway = await answering(200, {"agent_id": "a", "tools": None})
    async with GatewayClient(gateway.url) as client:
        assert await client.tools("a") == []


async def test_a_stored_result_is_its_envelope(answering):
    gateway = await answering(200, STORED)
    async with GatewayClient(gateway.url) as client:
        envelope = await client.result("r1")
    payload = {"ok": True, "result_json": {"n": "1"}}
    assert envelope == Envelope(type="RESULT", agent_id="a", req_id="r1", ts=7, payload=payload)
    assert gateway.requests[0].line == "GET /internal/bridge/results/r1 HTTP/1.1"


async def test_no_stored_result_is_none(answering):
    gateway = await answering(404, {"error": "not_found"})
    async with GatewayClient(gateway.url) as client:
        assert await client.result("r1") is None


async def test_a_gateway_that_stores_no_results_says_so(answering):
    gateway = await answering(501, {"error": "redis_not_enabled"})
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(ResultsUnsupported):
            await client.result("r1")


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize(
    ("status", "body", "error", "code"),
    [
        (401, b"", NotSent, "unauthorized"),
        (404, b"404 page not found\n", NotSent, "bad_gateway_url"),
        (404, {"error": "agent_offline"}, NotSent, "agent_offline"),
        (502, {"error": "redis_error"}, Unavailable, "redis_error"),
        (502, b"<html>", Unavailable, "gateway_error"),
        (500, b"", Unavailable, "gateway_error"),
        (405, b"", Unavailable, "gateway_error"),
        (200, b"<html>", Unavailable, "bad_answer"),
        (200, b"[]", Unavailable, "bad_answer"),
        (200, b"{}", Unavailable, "bad_answer"),
        (200, b'{"agents":{"a":1},"tools":"all"}', Unavailable, "bad_answer"),
        (200, b"x" * (16 * 1024 * 1024 + 1), Unavailable, "bad_answer"),
    ],
)
async def test_each_odd_answer_to_a_read_says_what_it_means(answering, read, status, body, error, code):
    gateway = await answering(status, body)
    async with GatewayClient(gateway.url, "secret") as client:
        with pytest.raises(error) as caught:
            await READS[read](client)
    assert caught.value.code == code
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("read", READS)
async def test_a_redirect_is_not_followed_with_the_token(answering, read):
    other = await answering(200, {"agents": [], "tools": []})
    gateway = await answering(302, b"", f"Location: {other.url}/internal/bridge/agents")
    async with GatewayClient(gateway.url, "secret") as client:
        with pytest.raises(Unavailable):
            await READS[read](client)
    assert not other.requests


@pytest.mark.parametrize("read", READS)
async def test_a_read_without_a_gateway_is_not_sent(refused_url, read):
    async with GatewayClient(refused_url) as client:
        with pytest.raises(NotSent) as caught:
            await READS[read](client)
    assert caught.value.code == "gateway_unavailable"


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("half", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"no HTTP\r\n\r\n"])
async def test_a_read_whose_answer_breaks_off_is_unavailable(serve, read, half):
    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.send(half)

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(Unavailable) as caught:
            await READS[read](client)
    assert caught.value.code == "connection_lost"


@pytest.mark.parametrize("read", READS)
async def test_a_closed_client_reads_nothing(answering, read):
    gateway = await answering(200, {"agents": [], "tools": []})
    client = GatewayClient(gateway.url)
    await client.agents()
    await client.aclose()
    await client.aclose()
    with pytest.raises(NotSent) as caught:
        await READS[read](client)
    assert caught.value.code == "gateway_unavailable"
    assert len(gateway.requests) == 1
