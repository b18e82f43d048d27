"""The line: one connection to Redis that the hot commands of a node share, with next to nothing between them and the
socket. Used by ``inbox``; whatever is rare goes through redis-py.

redis-py opens the connection (TLS, passwords and Sentinels are its business), then its transport is ours: commands are
packed by hiredis and written as they come, answers are read by hiredis and come in the same order. Nobody waits for a
free connection, and a question costs some 20 µs of CPU where a pipeline of redis-py costs 150 µs and more.

A line that breaks fails everything asked on it, and the next question opens another: nothing is ever sent twice by
itself. One on which Redis answers with an error is given up too: after a failover it may lead to a replica.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

Command = tuple[str | bytes | int, ...]

_NOT_YET = object()


class Script:
    """A Lua script by its name to the server: the SHA-1 of its text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class Line:
    """``ask`` from any task. ``make`` prepares a connection of redis-py; it is opened when first needed."""

    def __init__(self, make: Callable[[], AbstractConnection], *, timeout_s: float) -> None:
        self._make = make
        self._timeout_s = timeout_s
        self._talk: _Talk | None = None
        self._opening = asyncio.Lock()
        self._failed = 0
        """How often it could not be opened."""

    async def ask(self, *commands: Command, within_s: float = 0.0) -> list[Any]:
        """The answers to the commands, sent together; ``within_s``: how much longer than usual they may take.

        Raises what redis-py would: ConnectionError, TimeoutError, ResponseError (the first of the answers that is one).
        """
        if not commands:  # no answer would ever come, and those of the others would be taken for it
            return []
        talk = self._talk
        if talk is None or talk.is_over():
            talk = await self._open()
        packed = b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type]  # its stub wants a 1-tuple
        return await talk.ask(packed, len(commands), within_s)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """The answer of a script, loaded when the server does not know it. Raises as ``ask``."""
        call: Command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            return (await self.ask(call))[0]
        except ResponseError as fault:
            if not str(fault).startswith("NOSCRIPT"):
                raise
        _, answer = await self.ask(("SCRIPT", "LOAD", script.text), call)
        return answer

    def close(self) -> None:
        """End it; what is asked on it fails."""
        if self._talk is not None:
            self._talk.end("closed on this side")

    async def _open(self) -> _Talk:
        """One tries for all: were each to wait for its turn at a mute server, the hundredth would wait for minutes."""
        failed = self._failed
        async with self._opening:
            if self._talk is None or self._talk.is_over():
                if self._failed != failed:
                    raise RedisConnectionError("no connection could be opened just now")
                connection = self._make()
                try:
                    await connection.connect()  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
                except Exception:
                    self._failed += 1
                    raise
                self._talk = _Talk(connection, self._timeout_s)
            return self._talk


class _Asked:
    """Commands sent together that wait for their answers."""

    __slots__ = ("answers", "due", "told", "wanted")

    def __init__(self, wanted: int, due: float, told: asyncio.Future[list[Any]]) -> None:
        self.wanted = wanted
        self.due = due
        self.told = told
        self.answers: list[Any] = []


class _Talk(asyncio.Protocol):
    """One open connection. It looks at the oldest question once in a while, so that no question needs a timer."""

    def __init__(self, connection: AbstractConnection, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET, replyError=ResponseError)
        self._waiting: deque[_Asked] = deque()
        self._over = False
        # redis-py has no public way to hand a connection over; and it would close what it still knew of.
        writer: Any = connection._writer
        connection._writer = connection._reader = None
        self._writer = writer  # which closes its transport when nobody knows it any more
        self._transport = writer.transport
        self._transport.set_protocol(self)
        self._watch: asyncio.TimerHandle = self._loop.call_later(timeout_s / 2, self._look)

    def ask(self, packed: bytes, wanted: int, within_s: float) -> asyncio.Future[list[Any]]:
        """Write now; the answers come with the future."""
        told: asyncio.Future[list[Any]] = self._loop.create_future()
        self._waiting.append(_Asked(wanted, self._loop.time() + self._timeout_s + within_s, told))
        self._transport.write(packed)
        return told

    def is_over(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._over or self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not _NOT_YET:
            if isinstance(answer, hiredis.PushNotification):
                continue
            if self._over:  # what came before was a refusal; whoever asked has been told
                return
            asked = self._waiting[0]
            asked.answers.append(answer)
            if len(asked.answers) == asked.wanted:
                self._waiting.popleft()
                self._tell(asked)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self.end(str(exc) if exc is not None else "Redis closed the connection")

    def end(self, why: str) -> None:
        """No more of this connection: everything asked fails."""
        self._over = True
        self._watch.cancel()
        self._transport.abort()
        while self._waiting:
            asked = self._waiting.popleft()
            if not asked.told.done():
                asked.told.set_exception(RedisConnectionError(why))

    def _tell(self, asked: _Asked) -> None:
        fault = next((one for one in asked.answers if isinstance(one, ResponseError)), None)
        if asked.told.done():  # nobody waits any more
            return
        if fault is None:
            asked.told.set_result(asked.answers)
            return
        asked.told.set_exception(fault)
        if not str(fault).startswith("NOSCRIPT"):
            self.end(f"Redis refused what was asked beside: {fault}")

    def _look(self) -> None:
        """Give up a server that owes an answer for too long."""
        if self._waiting and self._waiting[0].due < self._loop.time():
            self.end("Redis does not answer")
        else:
            self._watch = self._loop.call_later(self._timeout_s / 2, self._look)
