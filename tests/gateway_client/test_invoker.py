"""The pool that carries calls, over real sockets: sent once, surely not sent, or maybe sent."""

import asyncio
import ssl
import subprocess

import pytest

from gateway_client import GatewayClient, Invocation, MaybeSent, NotSent
from gateway_client.invoker import IDLE_LIMIT_S

CALL = Invocation(req_id="r1", agent_id="agent-1", tool_name="demo__add", arguments={}, timeout_ms=0, stream=True)
ACCEPTED = {"req_id": "r1", "status": "accepted"}


async def swallow_all(gateway, peer):
    """Takes the call and never answers."""
    await gateway.take(peer)
    await peer.gone()


def sending(data):
    """Takes one request, sends these bytes and closes."""

    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.send(data)

    return script


async def test_calls_one_after_another_share_a_connection(serve):
    gateway = await serve()
    async with GatewayClient(gateway.url) as client:
        for _ in range(5):
            await client.invoke(CALL)
    assert len(gateway.requests) == 5
    assert len(gateway.peers) == 1


async def test_the_connection_used_last_is_used_first(serve):
    go = asyncio.Event()

    async def script(gateway, peer):
        while await gateway.take(peer):
            await go.wait()
            await peer.answer(202, ACCEPTED)
            used.append(peer)

    used = []
    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        calls = [asyncio.create_task(client.invoke(CALL)) for _ in range(2)]
        for _ in calls:
            await gateway.arrived.get()
        go.set()
        await asyncio.gather(*calls)
        await client.invoke(CALL)
        await client.invoke(CALL)
    assert used[2] is used[3]


@pytest.mark.parametrize(
    "chunks",
    [
        b'5\r\n{"req\r\n3;x=y\r\n":1\r\n1\r\n}\r\n0\r\n\r\n',
        b"0\r\nTrailer: yes\r\n\r\n",
    ],
)
async def test_a_chunked_answer_is_an_answer_and_its_connection_is_kept(serve, chunks):
    async def script(gateway, peer):
        while await gateway.take(peer):
            await peer.send(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        await client.invoke(CALL)
    assert len(gateway.peers) == 1


async def test_an_answer_that_ends_with_its_connection_is_an_answer(serve):
    gateway = await serve(sending(b"HTTP/1.1 202 Accepted\r\n\r\nanything"))
    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        await client.invoke(CALL)
    assert len(gateway.peers) == 2


async def test_an_answer_that_says_close_ends_its_connection(serve):
    async def closing(gateway, peer):
        while await gateway.take(peer):
            await peer.answer(202, ACCEPTED, "Connection: close")

    gateway = await serve(closing)
    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        await gateway.left.get()
        await client.invoke(CALL)
    assert len(gateway.peers) == 2


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"HTTP/1.1 202 Acc",
        b'HTTP/1.1 202 Accepted\r\nContent-Length: 30\r\n\r\n{"req_id"',
        b'HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"r',
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"this is not HTTP\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
)
async def test_no_complete_answer_means_maybe_sent_and_the_call_is_never_repeated(serve, half):
    gateway = await serve(sending(half))
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(MaybeSent) as caught:
            await client.invoke(CALL)
    assert caught.value.code == "connection_lost"
    assert len(gateway.requests) == len(gateway.peers) == 1


async def test_a_reset_after_the_write_means_maybe_sent(serve):
    async def script(gateway, peer):
        await gateway.take(peer)
        peer.reset()

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(MaybeSent) as caught:
            await client.invoke(CALL)
    assert caught.value.code == "connection_lost"


async def test_a_kept_connection_that_dies_after_the_write_is_not_replaced_by_another(serve):
    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.answer(202, ACCEPTED)
        await gateway.take(peer)

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        with pytest.raises(MaybeSent):
            await client.invoke(CALL)
    assert len(gateway.requests) == 2
    assert len(gateway.peers) == 1


async def test_an_idle_connection_that_was_closed_is_replaced_before_anything_is_written(serve):
    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.answer(202, ACCEPTED)

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        for _ in range(3):
            await client.invoke(CALL)
            await gateway.left.get()
    assert len(gateway.requests) == len(gateway.peers) == 3


async def test_an_end_that_the_event_loop_has_not_noticed_yet_is_seen_before_the_write(serve):
    gateway = await serve()
    asked = 0

    def may_send():
        nonlocal asked
        asked += 1
        return True

    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        gateway.peers[0].end_now()
        await client.invoke(CALL, may_send=may_send)
    assert asked == 1
    assert len(gateway.requests) == len(gateway.peers) == 2


async def test_a_connection_on_which_unasked_bytes_come_is_closed(serve):
    go = asyncio.Event()

    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.answer(202, ACCEPTED)
        await go.wait()
        await peer.answer(202, ACCEPTED)
        await peer.gone()

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        go.set()
        await gateway.left.get()
        await client.invoke(CALL)
    assert len(gateway.requests) == len(gateway.peers) == 2


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop's clock cannot be moved
async def test_a_connection_idle_for_long_is_not_used_again(serve, monkeypatch):
    loop = asyncio.get_running_loop()
    gateway = await serve()
    async with GatewayClient(gateway.url) as client:
        await client.invoke(CALL)
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + IDLE_LIMIT_S + 1)
        await client.invoke(CALL)
    assert len(gateway.peers) == 2


async def test_a_refused_connection_means_not_sent(refused_url):
    async with GatewayClient(refused_url) as client:
        for attempt in (client.invoke(CALL), client.cancel("r1", "agent-1")):
            with pytest.raises(NotSent) as caught:
                await attempt
            assert caught.value.code == "gateway_unavailable"


async def test_a_host_that_cannot_be_found_means_not_sent():
    async with GatewayClient("http://no-such-host.invalid") as client:
        with pytest.raises(NotSent) as caught:
            await client.invoke(CALL)
    assert caught.value.code == "gateway_unavailable"


async def test_a_connection_that_takes_too_long_means_not_sent(serve):
    async def script(gateway, peer):
        await peer.gone()  # never answers the TLS handshake

    gateway = await serve(script)
    async with GatewayClient(gateway.url.replace("http:", "https:"), connect_timeout_s=0.05) as client:
        with pytest.raises(NotSent) as caught:
            await client.invoke(CALL)
    assert caught.value.code == "gateway_unavailable"


async def test_may_send_is_asked_with_the_connection_in_hand_and_its_no_leaves_the_connection_unused(serve):
    gateway = await serve()
    permits = iter([False, True])
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(NotSent) as caught:
            await client.invoke(CALL, may_send=lambda: next(permits))
        assert caught.value.code == "not_permitted"
        await client.invoke(CALL, may_send=lambda: next(permits))
    assert len(gateway.requests) == len(gateway.peers) == 1


async def test_may_send_is_not_asked_when_there_is_no_connection(refused_url):
    async with GatewayClient(refused_url) as client:
        with pytest.raises(NotSent):
            await client.invoke(CALL, may_send=lambda: pytest.fail("asked"))


async def test_what_may_send_raises_passes_through_with_nothing_sent(serve):
    gateway = await serve()
    async with GatewayClient(gateway.url, max_connections=1) as client:
        with pytest.raises(ZeroDivisionError):
            await client.invoke(CALL, may_send=lambda: 1 // 0 > 0)
        await client.invoke(CALL)
    assert len(gateway.requests) == len(gateway.peers) == 1


async def test_a_cancelled_caller_closes_its_connection(serve):
    gateway = await serve(swallow_all)
    async with GatewayClient(gateway.url, max_connections=1) as client:
        for _ in range(2):
            call = asyncio.create_task(client.invoke(CALL))
            await gateway.arrived.get()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await gateway.left.get()
    assert len(gateway.peers) == 2


async def test_a_caller_cancelled_in_the_queue_has_sent_nothing_and_loses_no_slot(serve):
    go = asyncio.Event()

    async def script(gateway, peer):
        while await gateway.take(peer):
            await go.wait()
            await peer.answer(202, ACCEPTED)

    gateway = await serve(script)
    async with GatewayClient(gateway.url, max_connections=1) as client:
        first, second, third = (asyncio.create_task(client.invoke(CALL)) for _ in range(3))
        await gateway.arrived.get()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go.set()
        await asyncio.gather(first, third)
        await client.invoke(CALL)
    assert len(gateway.requests) == 3


async def test_the_pool_never_holds_more_connections_than_its_bound(serve):
    go = asyncio.Event()

    async def script(gateway, peer):
        while await gateway.take(peer):
            await go.wait()
            await peer.answer(202, ACCEPTED)

    gateway = await serve(script)
    async with GatewayClient(gateway.url, max_connections=3) as client:
        calls = [asyncio.create_task(client.invoke(CALL)) for _ in range(20)]
        for _ in range(3):
            await gateway.arrived.get()
        go.set()
        await asyncio.gather(*calls)
    assert len(gateway.requests) == 20
    assert gateway.most_open == 3


async def test_a_cancel_need_not_queue_behind_the_call_that_it_stops(serve):
    async def script(gateway, peer):
        while request := await gateway.take(peer):
            if "/cancel" in request.line:
                await peer.answer(202, ACCEPTED)

    gateway = await serve(script)
    async with GatewayClient(gateway.url, max_connections=1) as client:
        call = asyncio.create_task(client.invoke(CALL))
        await gateway.arrived.get()
        await client.cancel("r1", "agent-1")
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_an_answer_that_outlasts_the_callers_own_limit_means_maybe_sent(serve):
    gateway = await serve(swallow_all)
    async with GatewayClient(gateway.url, answer_timeout_s=0.05) as client:
        with pytest.raises(MaybeSent) as caught:
            await client.invoke(CALL)
        assert caught.value.code == "connection_lost"
        await gateway.left.get()


async def test_closing_the_client_ends_open_calls_as_maybe_sent_and_queued_and_later_ones_as_not_sent(serve):
    gateway = await serve(swallow_all)
    client = GatewayClient(gateway.url, max_connections=1)
    first, queued = (asyncio.create_task(client.invoke(CALL)) for _ in range(2))
    await gateway.arrived.get()
    await client.aclose()
    with pytest.raises(MaybeSent):
        await first
    for attempt in (queued, client.invoke(CALL)):
        with pytest.raises(NotSent):
            await attempt
    assert len(gateway.requests) == 1


async def test_a_call_whose_client_closes_while_it_connects_is_not_sent(serve):
    gateway = await serve()
    client = GatewayClient(gateway.url)
    call = asyncio.create_task(client.invoke(CALL))
    await asyncio.sleep(0)
    await client.aclose()
    with pytest.raises(NotSent):
        await call
    assert not gateway.requests


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    subprocess.run([*new, *subject, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key


async def test_calls_over_tls_share_a_connection_and_an_untrusted_server_gets_nothing(serve, certificate, monkeypatch):
    cert, key = certificate
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    gateway = await serve(tls=tls)
    async with GatewayClient(gateway.url) as stranger:
        with pytest.raises(NotSent) as caught:
            await stranger.invoke(CALL)
        assert caught.value.code == "gateway_unavailable"
    assert not gateway.requests
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    async with GatewayClient(gateway.url) as client:
        for _ in range(3):
            await client.invoke(CALL)
        await client.cancel("r1", "agent-1")
    assert len(gateway.requests) == 4
    assert len(gateway.peers) == 2
