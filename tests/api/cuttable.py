"""A cuttable connection: a relay before Postgres or Valkey that tests can cut and mend, as a network would be.

Used by ``test_weather``. It reads nothing of what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from daemon.dev.processes import free_port

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Relay:
    """Carries every connection to its target; ``cut`` aborts them all and refuses new ones until ``mend``."""

    def __init__(
        self,
        listen: Callable[[Callable[..., Awaitable[None]]], Awaitable[asyncio.Server]],
        connect: Callable[[], Awaitable[Streams]],
    ) -> None:
        self._listen = listen
        self._connect = connect
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def whole(self) -> bool:
        return self._server is not None

    async def mend(self) -> None:
        """Listen, for the first time or again."""
        self._server = await self._listen(self._carry)

    async def cut(self) -> None:
        """Nobody listens here any more, and whoever was connected is cut off."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for writer in list(self._open):
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        ends = (writer, far_writer)
        if not self.whole:  # cut while it was being made
            for end in ends:
                end.transport.abort()
            return
        self._open.update(ends)
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._open.difference_update(ends)
            for end in ends:
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def before_postgres(url: str, folder: Path) -> AsyncIterator[tuple[Relay, str]]:
    """A relay before a Postgres that listens on a Unix socket, and the URL that goes through it."""
    (host,) = parse_qs(urlsplit(url).query)["host"]
    name = ".s.PGSQL.5432"
    path = folder / name

    async def listen(carry: Callable[..., Awaitable[None]]) -> asyncio.Server:
        path.unlink(missing_ok=True)
        return await asyncio.start_unix_server(carry, path)

    relay = Relay(listen, lambda: asyncio.open_unix_connection(f"{host}/{name}"))
    await relay.mend()
    try:
        yield relay, f"{url.partition('?')[0]}?host={folder}"
    finally:
        await relay.cut()


@asynccontextmanager
async def before_redis(url: str) -> AsyncIterator[tuple[Relay, str]]:
    """A relay before a Valkey, and the URL that goes through it; a mended one listens on the same port."""
    target, port = urlsplit(url), free_port()

    async def listen(carry: Callable[..., Awaitable[None]]) -> asyncio.Server:
        return await asyncio.start_server(carry, "127.0.0.1", port)

    relay = Relay(listen, lambda: asyncio.open_connection(target.hostname, target.port))
    await relay.mend()
    try:
        yield relay, f"redis://127.0.0.1:{port}/0"
    finally:
        await relay.cut()
