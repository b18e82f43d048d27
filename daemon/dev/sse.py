"""Following an SSE stream for as long as it takes: the client side of ``text/event-stream``, with reconnection.

For ``demo`` and tests, over a session of theirs. The parser keeps to the HTML standard (§9.2.6 "Interpreting an event
stream"): any line end, split anywhere; comments are passed over. It never judges what an event means.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import aiohttp

from daemon.errors import WorldError

RETRY_S = 1.0
"""Pause before the first reconnection, until the server names one with ``retry:``."""
SILENCE_S = 45.0
"""A stream that says nothing for longer, not even a comment, is taken for dead: three of our heartbeats."""


class StreamLost(WorldError):
    """The event stream ended and could not be opened again."""

    code = "stream_lost"


@dataclass(frozen=True, slots=True)
class Message:
    """One event. ``last_id`` is the last id seen up to and including this one, "" if none: where to go on after it."""

    event: str
    data: str
    last_id: str


class Parser:
    """Bytes in, messages out. ``retry_s`` is the server's wish, if it had one."""

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self.retry_s: float | None = None
        self._begun = False
        self._rest = b""
        self._event = ""
        self._id = last_id
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete with these bytes, in order."""
        text = self._rest + data
        held = b"\r" if text.endswith(b"\r") else b""  # its LF may follow in the next read
        text = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        self._rest += held
        return [message for line in lines if (message := self._line(line.decode(errors="replace"))) is not None]

    def reset(self) -> None:
        """A connection ended: half an event is none."""
        self._begun = False
        self._rest, self._event, self._id, self._data = b"", "", self.last_id, []

    def _line(self, line: str) -> Message | None:
        if not self._begun:
            self._begun, line = True, line.removeprefix("\ufeff")  # a byte order mark before the stream is none of it
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry_s = int(value) / 1000
        return None

    def _dispatch(self) -> Message | None:
        self.last_id = self._id
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return Message(event, "\n".join(data), self.last_id) if data else None


async def follow(
    session: aiohttp.ClientSession, url: str, *, last_id: str = "", patience_s: float = 15.0
) -> AsyncGenerator[Message, None]:
    """Every message after ``last_id``; reconnects with ``Last-Event-ID`` until the server answers 204, which ends it.

    Raises StreamLost when the server refuses (4xx), or is away for longer than ``patience_s``.
    """
    parser = Parser(last_id)
    lost_at: float | None = None
    while True:
        try:
            async with session.get(url, headers=_headers(parser.last_id), timeout=_TIMEOUT) as answer:
                if answer.status == 204:
                    return
                if answer.status < 500 and answer.status != 200:
                    raise StreamLost(f"{url} answers {answer.status}: {(await answer.text())[:500]}")
                answer.raise_for_status()
                async for part in answer.content.iter_any():
                    lost_at = None
                    for message in parser.feed(part):
                        yield message
            fault = "the stream ended"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            fault = str(error) or type(error).__name__
        parser.reset()
        lost_at = lost_at or time.monotonic()
        if time.monotonic() - lost_at > patience_s:
            raise StreamLost(f"{url} could not be followed for {patience_s:g} s: {fault}")
        await asyncio.sleep(RETRY_S if parser.retry_s is None else parser.retry_s)


_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=SILENCE_S)


def _headers(last_id: str) -> dict[str, str]:
    resumed = {"Last-Event-ID": last_id} if last_id else {}
    return {"Accept": "text/event-stream", "Cache-Control": "no-store", **resumed}
