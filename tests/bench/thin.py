"""A thin HTTP/1.1 keep-alive client: requests as bytes in, (status, body) out. For loads and for the thin floor.

It trusts its server (answers carry Content-Length or are the SSE stream of ``lines``), and keeps at most ``most``
connections; more requests wait their turn. Never for production: ``gateway_client`` is careful, this is only fast.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable
from typing import Any

LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def request(method: str, path: str, body: bytes = b"", *, token: str = "") -> bytes:
    """The bytes of a request."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{authorization}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, free: Callable[[_Connection], None], broken: Callable[[_Connection], None]) -> None:
        self._free = free
        self._broken = broken
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._broken(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed before the answer"))

    def send(self, data: bytes, answer: asyncio.Future[tuple[int, bytes]]) -> None:
        self._answer = answer
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        found = LENGTH.search(self._buffer, 0, end) if end > 0 else None
        if found is None or len(self._buffer) < (whole := end + 4 + int(found[1])):
            return
        status, body, self._buffer = int(self._buffer[9:12]), self._buffer[end + 4 : whole], self._buffer[whole:]
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((status, body))
        self._free(self)


class Client:
    """Keep-alive connections to one server on 127.0.0.1. Use as ``async with``."""

    def __init__(self, port: int, *, most: int = 64) -> None:
        self._port = port
        self._most = most
        self._all: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._waiting: deque[tuple[bytes, asyncio.Future[tuple[int, bytes]]]] = deque()
        self._opening = 0

    async def __aenter__(self) -> Client:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in list(self._all):
            connection.transport.close()

    def send(self, data: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Send as soon as a connection is free; the future is the answer. Raises what the connection says."""
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        if self._idle:
            self._idle.pop().send(data, answer)
            return answer
        self._waiting.append((data, answer))
        if len(self._all) + self._opening < self._most:
            self._opening += 1
            task = asyncio.ensure_future(self._open())
            task.add_done_callback(self._opened)
        return answer

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening -= 1
        fault = task.exception()
        if fault is not None and not self._all:
            while self._waiting:
                self._waiting.popleft()[1].set_exception(fault)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: _Connection(self._free, self._lost), "127.0.0.1", self._port)
        self._all.add(made)
        self._free(made)

    def _free(self, connection: _Connection) -> None:
        if self._waiting:
            connection.send(*self._waiting.popleft())
        else:
            self._idle.append(connection)

    def _lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Lines(asyncio.Protocol):
    """An event stream: hands whatever came to ``heard``; chunk sizes of the transfer coding stand between events."""

    def __init__(self, path: str, heard: Callable[[bytes], None]) -> None:
        self._path = path
        self._heard = heard

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(request("GET", self._path))  # type: ignore[attr-defined] # TCP transports have it

    def data_received(self, data: bytes) -> None:
        self._heard(data)
