"""A Gateway of the tests: a raw TCP server that does to each connection what a script says, also what no server should.

Every test of this room runs on asyncio's own loop and on uvloop, which production uses.
"""

import asyncio
import json
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import uvloop


def pytest_asyncio_loop_factories(config, item):
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> Request | None:
        """The next request; None when the client has closed."""
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *lines = head[:-4].split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Request(line, headers, body)

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, status: int, body: object = b"", *headers: str, kind: str = "application/json") -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() + b"\n"
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}", f"Content-Length: {len(raw)}", *headers]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)

    async def gone(self) -> None:
        """Returns when the client has closed its side."""
        try:
            while await self._reader.read(65536):
                pass
        except ConnectionError:
            pass

    def close(self) -> None:
        self._writer.close()

    def end_now(self) -> None:
        """Sends the end of file within this very call, so that the client's event loop cannot have noticed it."""
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()


Script = Callable[["Gateway", Peer], Awaitable[None]]


@dataclass
class Gateway:
    """What the server saw. `arrived` gets every request as soon as it is complete, `left` one entry per closed peer."""

    script: Script
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    peers: list[Peer] = field(default_factory=list)
    arrived: asyncio.Queue[Request] = field(default_factory=asyncio.Queue)
    left: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    open_now: int = 0
    most_open: int = 0

    async def take(self, peer: Peer) -> Request | None:
        """The next request of a peer, noted down."""
        request = await peer.request()
        if request is not None:
            self.requests.append(request)
            self.arrived.put_nowait(request)
        return request

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self.peers.append(peer)
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            await self.script(self, peer)
        except ConnectionError:
            pass  # clients may leave in the middle
        finally:
            self.open_now -= 1
            writer.close()
            self.left.put_nowait(peer)


async def accept_all(gateway: Gateway, peer: Peer) -> None:
    """The script of a Gateway in good health, as far as calls go."""
    while request := await gateway.take(peer):
        await peer.answer(202, {"req_id": request.json["req_id"], "status": "accepted"})


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """`await serve(script)` starts a server; `script(gateway, peer)` runs once per connection."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(script: Script = accept_all, *, tls: ssl.SSLContext | None = None) -> Gateway:
        gateway = Gateway(script)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tasks.add(asyncio.get_running_loop().create_task(gateway.serve(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]
        gateway.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
        return gateway

    yield start
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    faults = [fault for fault in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(fault, Exception)]
    assert not faults


@pytest.fixture
def refused_url() -> str:
    """A URL whose port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"
