"""A wire between the store and Postgres that can be cut at the worst moment: a Unix socket that passes bytes on.

Used by ``test_lost_replies``. It understands nothing of what it carries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

SOCKET = ".s.PGSQL.5432"
Loss = Literal["question", "answer"]


class Wire:
    """``url`` leads through the wire. ``lose`` cuts the connection that next speaks, at a chosen moment."""

    def __init__(self, url: str, home: Path) -> None:
        asked = urlsplit(url)
        (directory,) = parse_qs(asked.query)["host"]
        self.url = f"postgresql://postgres@{asked.path}?host={quote(str(home))}"
        self._target = Path(directory) / SOCKET
        self._path = home / SOCKET
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loss: Loss | None = None
        self._before: Callable[[], Awaitable[object]] | None = None
        self.may_close = asyncio.Event()
        """Cleared: a connection that the server ends stays open at the client's side, though its last words passed."""
        self.may_close.set()
        self.lost = 0
        """Connections cut so far."""

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._connected, self._path)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lose(self, what: Loss, *, after: Callable[[], Awaitable[object]] | None = None) -> None:
        """Cut the connection before the next question reaches the server, or before its answer reaches the client.

        ``after`` is awaited once it is cut and before the client can know.
        """
        self._loss, self._before = what, after

    def cut(self) -> None:
        """Cut every connection now; Postgres goes on with what it has begun, for it notices only when it answers."""
        for task in self._tasks:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        server_reader, server_writer = await asyncio.open_unix_connection(self._target)
        ways = [
            asyncio.create_task(self._carry("question", reader, server_writer)),
            asyncio.create_task(self._carry("answer", server_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await self.may_close.wait()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, server_writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    async def _carry(self, what: Loss, source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 20):
                if self._loss == what:
                    before, self._loss, self._before = self._before, None, None
                    if before is not None:
                        await before()
                    self.lost += 1
                    return
                drain.write(data)
                await drain.drain()
