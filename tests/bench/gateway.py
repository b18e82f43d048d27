"""The bench Gateway: true to the contract where a call goes well, and as cheap as Python allows, so that it is not what
is measured. 202, INVOKE_ACK, one CHUNK, RESULT over SSE; cancels are acknowledged, results are not stored (404).

It is also the neutral clock: it counts the calls of whoever is measured, floor or node, and how long a run took from
the RESULT of one step to the invoke of its next (the gap). What ``arguments`` may ask for:

    hold_ms      how much later the RESULT comes (one queue and one timer for each length, no task a call)
    chunk_bytes  the size of the CHUNK's text
    last         this is the run's last step

``python -m tests.bench.gateway`` prints its port. A run is what the first 22 characters of a ``req_id`` name, as in
the engine's. Beside the contract: ``/bench/state``, ``/bench/reset``, and ``/bench/finished/N``, which is answered when
so many runs are finished (see ``Count``).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import orjson
import uvloop

RUN_CHARS = 22
PING_S = 15.0
TICK_S = 0.01
"""Held RESULTs that are due within this are said together."""
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)
READY = b"event: ready\ndata: {}\n\n"
PING = b": ping\n\n"
EVENT = b'event: bridge\ndata: {"v":1,"type":"%b","agent_id":"%b","req_id":"%b","ts":%d,"payload":%b}\n\n'
ACCEPTED = b'{"accepted":true}'
ANSWERED = b'{"ok":true,"result_json":{"echo":null}}'
CANCELED = b'{"will_cancel":true}'
NO_TOOLS = b'{"tools":[]}\n'
NOT_FOUND = b'{"error":"not_found"}\n'


class Count:
    """What was asked and said since the last reset; ``gaps_ms`` of all runs in the order in which they were seen."""

    def __init__(self) -> None:
        self.req_ids: set[str] = set()
        self.calls = 0
        self.said = 0
        self.finished = 0
        """RESULTs of last steps."""
        self.first_at = self.last_at = 0.0
        """Monotonic s: the first invoke, the last RESULT."""
        self.gaps_ms: list[float] = []
        self._said_at: dict[str, float] = {}
        self._waiting: tuple[int, Callable[[], None]] | None = None

    def called(self, req_id: str) -> None:
        """An invoke came."""
        now = time.monotonic()
        self.first_at = self.first_at or now
        self.calls += 1
        self.req_ids.add(req_id)
        before = self._said_at.pop(req_id[:RUN_CHARS], None)
        if before is not None:
            self.gaps_ms.append((now - before) * 1000)

    def answered(self, req_id: str, last: bool) -> None:
        """A RESULT is said."""
        self.last_at = time.monotonic()
        self.said += 1
        if last:
            self.finished += 1
            if self._waiting is not None and self.finished >= self._waiting[0]:
                (_, tell), self._waiting = self._waiting, None
                tell()
        else:
            self._said_at[req_id[:RUN_CHARS]] = self.last_at

    def when(self, finished: int, tell: Callable[[], None]) -> None:
        """Call ``tell`` once, as soon as so many runs are finished; one may wait at a time."""
        if self.finished >= finished:
            tell()
        else:
            self._waiting = finished, tell

    def as_json(self, *, gaps: bool) -> bytes:
        """``calls``, ``twice`` (calls of a req_id seen before), ``said``, ``finished``, ``seconds``, ``gaps_ms``."""
        told: dict[str, Any] = {
            "calls": self.calls,
            "twice": self.calls - len(self.req_ids),
            "said": self.said,
            "finished": self.finished,
            "seconds": self.last_at - self.first_at,
        }
        return orjson.dumps(told | {"gaps_ms": self.gaps_ms} if gaps else told)


class Events:
    """All subscribers; what is said within one turn of the loop goes out as one chunk."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._subscribers: set[asyncio.WriteTransport] = set()
        self._waiting: list[bytes] = []

    def subscribe(self, transport: asyncio.WriteTransport) -> None:
        transport.write(STREAM_HEAD + b"%x\r\n%b\r\n" % (len(READY), READY))
        self._subscribers.add(transport)

    def forget(self, transport: Any) -> None:
        self._subscribers.discard(transport)

    def say(self, said: bytes) -> None:
        """One or more whole events."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(said)

    async def ping(self) -> None:
        """The heartbeat, without which a client takes the stream for dead."""
        while True:
            await asyncio.sleep(PING_S)
            self.say(PING)

    def _flush(self) -> None:
        said, self._waiting = b"".join(self._waiting), []
        chunk = b"%x\r\n%b\r\n" % (len(said), said)
        for subscriber in self._subscribers:
            subscriber.write(chunk)


class Tools:
    """The agent behind: answers at once, or after the time that the call names."""

    def __init__(self, events: Events) -> None:
        self.count = Count()
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._held: dict[float, deque[tuple[float, bytes, bytes, bool]]] = {}
        """By their length in ms, in order: calls of one length end in the order in which they came."""

    def invoke(self, call: dict[str, Any]) -> None:
        agent, name = call["agent_id"].encode(), call["req_id"].encode()
        arguments = call.get("arguments") or {}
        self.count.called(call["req_id"])
        data = f"running tool: {call['tool_name']}\n".ljust(arguments.get("chunk_bytes", 0), ".")
        chunk = orjson.dumps({"channel": "stderr", "data": data})
        now = int(time.time())
        self._events.say(
            EVENT % (b"INVOKE_ACK", agent, name, now, ACCEPTED) + EVENT % (b"CHUNK", agent, name, now, chunk)
        )
        hold_ms, last = arguments.get("hold_ms", 0), bool(arguments.get("last"))
        if not hold_ms:
            self._finish(agent, name, last)
            return
        queue = self._held.setdefault(hold_ms, deque())
        if not queue:
            self._loop.call_later(hold_ms / 1000, self._due, hold_ms)
        queue.append((self._loop.time() + hold_ms / 1000, agent, name, last))

    def cancel(self, call: dict[str, Any]) -> None:
        agent, name = call["agent_id"].encode(), call["req_id"].encode()
        self._events.say(EVENT % (b"CANCEL_ACK", agent, name, int(time.time()), CANCELED))

    def _due(self, hold_ms: float) -> None:
        queue = self._held[hold_ms]
        now = self._loop.time()
        while queue and queue[0][0] <= now + TICK_S / 2:
            _, agent, name, last = queue.popleft()
            self._finish(agent, name, last)
        if queue:
            self._loop.call_later(max(TICK_S, queue[0][0] - now), self._due, hold_ms)

    def _finish(self, agent: bytes, name: bytes, last: bool) -> None:
        self.count.answered(name.decode(), last)
        self._events.say(EVENT % (b"RESULT", agent, name, int(time.time()), ANSWERED))


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, pipelining allowed."""

    def __init__(self, events: Events, tools: Tools) -> None:
        self._events = events
        self._tools = tools
        self._transport: Any = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._events.forget(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self._buffer, 0, end)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < whole:
                return
            path, body = self._buffer.split(b" ", 2)[1], self._buffer[end + 4 : whole]
            self._buffer = self._buffer[whole:]
            self._handle(path, body)

    def _handle(self, path: bytes, body: bytes) -> None:
        if path == b"/internal/bridge/invoke":
            call = orjson.loads(body)
            self._answer(b"202 Accepted", b'{"req_id":"%b","status":"accepted"}\n' % call["req_id"].encode())
            self._tools.invoke(call)
        elif path == b"/internal/bridge/cancel":
            call = orjson.loads(body)
            self._answer(b"202 Accepted", b'{"req_id":"%b","status":"sent"}\n' % call["req_id"].encode())
            self._tools.cancel(call)
        elif path.startswith(b"/internal/bridge/events"):
            self._events.subscribe(self._transport)
        elif path.endswith(b"/tools"):
            self._answer(b"200 OK", NO_TOOLS)
        elif path.startswith(b"/bench/state"):
            self._answer(b"200 OK", self._tools.count.as_json(gaps=path.endswith(b"?gaps")))
        elif path.startswith(b"/bench/finished/"):
            self._tools.count.when(int(path[16:]), lambda: self._answer(b"200 OK", b"{}"))
        elif path == b"/bench/reset":
            self._tools.count = Count()
            self._answer(b"200 OK", b"{}")
        else:
            self._answer(b"404 Not Found", NOT_FOUND)

    def _answer(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)


async def serve() -> None:
    """Serve on a free port of 127.0.0.1, printed first, until killed."""
    loop = asyncio.get_running_loop()
    events = Events()
    tools = Tools(events)
    server = await loop.create_server(lambda: Connection(events, tools), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with asyncio.TaskGroup() as group:
        group.create_task(events.ping())
        group.create_task(server.serve_forever())


if __name__ == "__main__":
    uvloop.run(serve())
