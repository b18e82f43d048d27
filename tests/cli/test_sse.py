"""The SSE reader: the standard's parsing wherever the bytes are cut, and a stream followed over broken connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from daemon.dev.sse import Message, Parser, StreamLost, follow

STREAM = (
    ": a comment\nretry: 1500\n\n"
    "id: 1\nevent: one\ndata: {\ndata: }\n\n"
    "data:no space\r\nid:2\r\n\r\n"
    "event: nothing\n\n"
    "event: löwe\rdata:  two spaces\r\r"
    "data: cut off"
).encode()
MESSAGES = [Message("one", "{\n}", "1"), Message("message", "no space", "2"), Message("löwe", " two spaces", "2")]


def test_messages_are_the_same_wherever_the_bytes_are_cut() -> None:
    for cut in range(len(STREAM) + 1):
        parser = Parser()
        heard = parser.feed(STREAM[:cut]) + parser.feed(STREAM[cut:])
        assert heard == MESSAGES, cut
        assert (parser.last_id, parser.retry_s) == ("2", 1.5)
    parser = Parser()
    assert [one for byte in STREAM for one in parser.feed(bytes([byte]))] == MESSAGES


def test_half_an_event_of_a_broken_connection_is_forgotten_with_its_id() -> None:
    parser = Parser()
    assert parser.feed(b"id: 7\ndata: x\n\nid: 8\ndata: half") == [Message("message", "x", "7")]
    parser.reset()
    assert parser.feed(b"data: new\n\n") == [Message("message", "new", "7")]


def test_a_byte_order_mark_before_each_stream_is_no_part_of_it() -> None:
    parser = Parser()
    mark, event = "\ufeff".encode(), b"event: one\ndata: 1\n\n"
    for _ in range(2):
        told = [one for byte in mark + event + mark + event for one in parser.feed(bytes([byte]))]
        assert told == [Message("one", "1", ""), Message("message", "1", "")]
        parser.reset()


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    servers: list[TestServer] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_get("/events", handler)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return str(servers[-1].make_url("/events"))

    yield start
    for server in servers:
        await server.close()


async def test_a_stream_is_followed_over_broken_connections_until_204(
    serve: Callable[[Handler], Awaitable[str]],
) -> None:
    asked: list[str | None] = []

    async def events(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Last-Event-ID"))
        match len(asked):
            case 2:
                return web.Response(status=503)
            case 4:
                return web.Response(status=204)
        response = web.StreamResponse()
        await response.prepare(request)
        first = 2 * (len(asked) // 2) + 1
        await response.write(b"retry: 1\n\nid: %d\ndata: a\n\nid: %d\ndata: b\n\nid: 9\n" % (first, first + 1))
        assert request.transport is not None
        request.transport.close()
        return response

    url = await serve(events)
    async with aiohttp.ClientSession() as session:
        heard = [message.last_id async for message in follow(session, url)]
    assert heard == ["1", "2", "3", "4"]
    assert asked == [None, "2", "2", "4"]


async def test_a_refusal_is_told_in_the_servers_words(serve: Callable[[Handler], Awaitable[str]]) -> None:
    async def events(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=404, text="no such run")

    url = await serve(events)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(StreamLost, match="answers 404: no such run"):
            await anext(follow(session, url))


async def test_a_server_that_stays_away_is_given_up(serve: Callable[[Handler], Awaitable[str]]) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(StreamLost, match="could not be followed"):
            await anext(follow(session, "http://127.0.0.1:1/events", patience_s=0))
