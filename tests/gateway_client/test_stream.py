"""The event stream: the same envelopes however the bytes were split, and an honest end."""

import asyncio
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway_client import Envelope, GatewayClient, NotSent, Unavailable
from gateway_client.stream import FrameReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
READY = b"event: ready\ndata: {}\n\n"
PING = b": ping\n\n"
MARK = b"\xef\xbb\xbf"


def frame(n, text=""):
    told = {"v": 1, "type": "CHUNK", "agent_id": "a", "req_id": f"r{n}", "ts": n, "payload": {"data": text}}
    return b"event: bridge\ndata: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


def numbers(batches):
    return [envelope.ts for batch in batches for envelope in batch]


def read(parts, **bounds):
    """What a reader made of these parts, and the reader."""
    reader = FrameReader(**bounds)
    return [envelope for part in parts for envelope in reader.feed(part)], reader


ODD_FRAMES = [
    READY,
    PING,
    b"\n",
    b"\n\n\n",
    b"id: 7\nretry: 10\n\n",
    b"data: {}\n\n",
    b"event: other\ndata: 1\n\n",
    b"event: bridge\n\n",
    b"event: bridge\ndata: not json\n\n",
    b'event:bridge\n: in between\ndata:{\ndata:"v":1,\ndata: "type":"SPLIT"}\n\n',
    b"event: bridge\ndata: \xff\n\n",
]
FRAMES = st.lists(
    st.builds(frame, st.integers(1, 99), st.text(st.characters(codec="utf-8"), max_size=30))
    | st.sampled_from(ODD_FRAMES)
)
LINE_ENDS = st.sampled_from([b"\n", b"\r\n"])


@given(FRAMES, LINE_ENDS, st.sampled_from([b"", MARK]), st.lists(st.integers(min_value=0), max_size=30))
@example([frame(1, "还有"), frame(2)], b"\r\n", MARK, list(range(400)))
def test_the_envelopes_are_the_same_however_the_bytes_were_split(frames, line_end, mark, cuts):
    data = mark + b"".join(frames).replace(b"\n", line_end)
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    parts = [data[start:stop] for start, stop in zip(places, [*places[1:], len(data)], strict=True)]
    split, reader = read(parts)
    apart, other = read(frames)
    assert split == apart
    assert (reader.ready, reader.malformed, reader.dropped) == (other.ready, other.malformed, other.dropped)


@pytest.mark.parametrize(
    "parts", [[MARK + READY], [MARK[:1], MARK[1:2], MARK[2:] + READY], [MARK, READY], [b"", MARK + READY]]
)
def test_a_byte_order_mark_before_the_stream_is_no_part_of_it(parts):
    """The standard of EventSource: one leading U+FEFF is ignored, if any is present."""
    envelopes, reader = read([*parts, frame(1)])
    assert (reader.ready, [envelope.ts for envelope in envelopes]) == (True, [1])


@pytest.mark.parametrize("before", [MARK + MARK, MARK[:2], b"\n\n" + MARK])
def test_only_one_mark_and_only_at_the_beginning_is_ignored(before):
    _, reader = read([before + READY])
    assert not reader.ready


@given(st.lists(st.integers(0, 60), max_size=6), st.integers(1, 50), LINE_ENDS)
def test_what_is_dropped_for_its_size_is_the_same_however_the_bytes_were_split(sizes, step, line_end):
    frames = [frame(n, "x" * size) for n, size in enumerate(sizes)]
    bound = len(frame(1, "x" * 30)) - 2
    data = b"".join(frames).replace(b"\n", line_end)
    envelopes, reader = read([data[at : at + step] for at in range(0, len(data), step)], max_frame_bytes=bound)
    assert [envelope.ts for envelope in envelopes] == [n for n, size in enumerate(sizes) if size <= 30]
    assert reader.dropped == sum(size > 30 for size in sizes)


def test_a_frame_without_an_end_takes_no_memory_and_costs_no_other_frame():
    reader = FrameReader()
    assert reader.feed(frame(1) + b"event: bridge\ndata: ") == [Envelope.parse(frame(1)[20:])]
    for _ in range(200):
        assert reader.feed(b"x" * 65536) == []
        assert len(reader._buffer) <= 4 * 1024 * 1024 + 2
    assert [envelope.ts for envelope in reader.feed(b"\n\n" + frame(2))] == [2]
    assert reader.dropped == 1


def test_frames_that_should_have_held_an_envelope_are_counted():
    _, reader = read(ODD_FRAMES)
    assert reader.malformed == 3


def events(*steps, end=None):
    """A script that opens a stream, sends each step as one chunk, and then waits for the client, or for its own end."""

    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.send(HEAD)
        for step in steps:
            await peer.send(b"%x\r\n%b\r\n" % (len(step), step))
        if end is None:
            await peer.gone()
        else:
            await end(peer)

    return script


async def say_the_last_chunk(peer):
    await peer.send(b"0\r\n\r\n")


async def just_close(peer):
    pass


async def test_a_subscription_asks_for_what_it_wants_and_is_active_once_entered(serve):
    gateway = await serve(events(READY))
    async with GatewayClient(f"{gateway.url}/prefix", "secret") as client:
        async with client.events(agent_id="a&b", req_id="r1"):
            pass
        async with client.events():
            pass
    filtered, plain = gateway.requests
    assert filtered.line == "GET /prefix/internal/bridge/events?agent_id=a%26b&req_id=r1 HTTP/1.1"
    assert filtered.headers["x-internal-token"] == "secret"
    assert plain.line == "GET /prefix/internal/bridge/events HTTP/1.1"


async def test_leaving_a_stream_closes_its_connection(serve):
    gateway = await serve(events(READY))
    async with GatewayClient(gateway.url) as client:
        async with client.events():
            pass
        await gateway.left.get()


async def test_events_in_the_same_read_as_ready_are_not_lost(serve):
    gateway = await serve(events(READY + frame(1) + frame(2), frame(3), end=just_close))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        assert numbers([batch async for batch in stream]) == [1, 2, 3]


async def test_one_read_is_one_batch_and_no_batch_is_empty(serve):
    go = asyncio.Event()

    async def send_the_rest(peer):
        await go.wait()
        rest = frame(3)[9:] + PING
        await peer.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))

    gateway = await serve(events(READY, PING, frame(1) + frame(2) + PING + frame(3)[:9], end=send_the_rest))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        first = await anext(stream)
        assert [envelope.ts for envelope in first] == [1, 2]
        go.set()
        assert [[envelope.ts for envelope in batch] async for batch in stream] == [[3]]


@pytest.mark.parametrize("end", [say_the_last_chunk, just_close])
async def test_a_stream_that_the_gateway_ends_ends_with_or_without_a_last_chunk(serve, end):
    gateway = await serve(events(READY, frame(1), end=end))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        assert numbers([batch async for batch in stream]) == [1]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_that_is_reset_raises(serve):
    go = asyncio.Event()

    async def reset(peer):
        await go.wait()
        peer.reset()

    gateway = await serve(events(READY, frame(1), end=reset))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        assert numbers([await anext(stream)]) == [1]
        go.set()
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await anext(stream)
            assert caught.value.code == "connection_lost"


async def test_a_stream_whose_framing_breaks_raises_no_later_than_a_silent_one(serve):
    go = asyncio.Event()

    async def break_the_framing(peer):
        await go.wait()
        await peer.send(b"this is no chunk size\r\n")
        await peer.gone()

    gateway = await serve(events(READY, frame(1), end=break_the_framing))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        assert numbers([await anext(stream)]) == [1]
        stream._silence_timeout_s = 0.2
        go.set()
        with pytest.raises(Unavailable):
            await anext(stream)


async def test_a_busy_consumer_still_gets_what_came_before_the_end(serve):
    gateway = await serve(events(READY, frame(1), frame(2), end=just_close))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        await stream._pump  # the connection is gone, and nobody has asked for an event yet
        assert numbers([batch async for batch in stream]) == [1, 2]


async def test_a_consumer_that_never_reads_makes_the_gateway_wait_rather_than_memory_grow(serve):
    flood = frame(1, "x" * 1_000_000)
    gateway = await serve(events(READY, *[flood] * 60, end=just_close))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        while not stream._reads.full():  # noqa: ASYNC110 - a queue tells nobody that it is full
            await asyncio.sleep(0)
        assert gateway.open_now == 1
        assert numbers([batch async for batch in stream]) == [1] * 60


async def test_a_silent_stream_raises(serve):
    gateway = await serve(events(READY, frame(1)))
    async with GatewayClient(gateway.url) as client, client.events() as stream:
        assert numbers([await anext(stream)]) == [1]
        stream._silence_timeout_s = 0.05
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                await anext(stream)
            assert caught.value.code == "silent"
        await gateway.left.get()


@pytest.mark.parametrize("steps", [(), (PING, frame(1))])
async def test_a_stream_that_does_not_become_ready_in_time_raises(serve, steps):
    gateway = await serve(events(*steps))
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(Unavailable) as caught:
            await client.events(silence_timeout_s=0.05).__aenter__()
        assert caught.value.code == "silent"
        if gateway.peers:  # on a busy machine the time may be over before it has connected
            await gateway.left.get()


async def test_a_stream_that_ends_before_it_is_ready_raises(serve):
    gateway = await serve(events(PING, end=just_close))
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(Unavailable) as caught:
            await client.events().__aenter__()
    assert caught.value.code == "connection_lost"


@pytest.mark.parametrize(
    ("status", "body", "kind", "error", "code"),
    [
        (401, b"", "", NotSent, "unauthorized"),
        (404, b"404 page not found\n", "text/plain", NotSent, "bad_gateway_url"),
        (200, b"<html>", "text/html", NotSent, "bad_gateway_url"),
        (302, b"", "text/plain", Unavailable, "gateway_error"),
        (503, {"error": "busy"}, "application/json", Unavailable, "gateway_error"),
    ],
)
async def test_a_refused_subscription_says_why(serve, status, body, kind, error, code):
    async def script(gateway, peer):
        await gateway.take(peer)
        await peer.answer(status, body, "Location: /elsewhere", kind=kind)

    gateway = await serve(script)
    async with GatewayClient(gateway.url) as client:
        with pytest.raises(error) as caught:
            await client.events().__aenter__()
    assert caught.value.code == code


async def test_a_subscription_without_a_gateway_is_not_sent(refused_url):
    async with GatewayClient(refused_url) as client:
        with pytest.raises(NotSent) as caught:
            await client.events().__aenter__()
    assert caught.value.code == "gateway_unavailable"


async def test_cancelling_the_consumer_of_a_stream_ends_it_at_once(serve):
    gateway = await serve(events(READY))

    async def consume(client):
        async with client.events() as stream:
            entered.set()
            async for _ in stream:
                pass

    entered = asyncio.Event()
    async with GatewayClient(gateway.url) as client:
        consumer = asyncio.create_task(consume(client))
        await entered.wait()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        await gateway.left.get()
