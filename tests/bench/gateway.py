"""The bench Gateway: true to the contract where a call goes well, and as cheap as Python allows, so that it is not what
is measured. 202, INVOKE_ACK, one CHUNK, RESULT over SSE; cancels are acknowledged, results are not stored (404).

``python -m tests.bench.gateway [--hold SECONDS]`` prints its port; ``--hold`` lets every RESULT come that much later.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import orjson
import uvloop

READY = b"event: ready\ndata: {}\n\n"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache, no-transform\r\n"
    b"X-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n"
)
NOT_FOUND = b'{"error":"not_found"}\n'


class Events:
    """All subscribers; what is said within one turn of the loop goes out as one chunk."""

    def __init__(self) -> None:
        self._subscribers: set[asyncio.WriteTransport] = set()
        self._waiting: list[bytes] = []

    def subscribe(self, transport: asyncio.WriteTransport) -> None:
        transport.write(STREAM_HEAD + b"%x\r\n%s\r\n" % (len(READY), READY))
        self._subscribers.add(transport)

    def forget(self, transport: Any) -> None:
        self._subscribers.discard(transport)

    def say(self, kind: str, call: dict[str, Any], payload: dict[str, Any]) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        told = {
            "v": 1,
            "type": kind,
            "agent_id": call["agent_id"],
            "req_id": call["req_id"],
            "ts": 1,
            "payload": payload,
        }
        self._waiting.append(b"event: bridge\ndata: " + orjson.dumps(told) + b"\n\n")

    def _flush(self) -> None:
        said, self._waiting = b"".join(self._waiting), []
        for subscriber in self._subscribers:
            subscriber.write(b"%x\r\n%s\r\n" % (len(said), said))


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, pipelining allowed."""

    def __init__(self, events: Events, hold_s: float) -> None:
        self._events = events
        self._hold_s = hold_s
        self._transport: Any = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._events.forget(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            _, _, length = head.partition(b"content-length:")
            size = int(length.split(b"\r\n", 1)[0]) if length else 0
            if len(self._buffer) < end + 4 + size:
                return
            path = self._buffer.split(b" ", 2)[1]
            body, self._buffer = self._buffer[end + 4 : end + 4 + size], self._buffer[end + 4 + size :]
            self._handle(path, body)

    def _handle(self, path: bytes, body: bytes) -> None:
        if path.startswith(b"/internal/bridge/invoke"):
            call = orjson.loads(body)
            self._answer(b"202 Accepted", b'{"req_id":"%s","status":"accepted"}\n' % call["req_id"].encode())
            self._events.say("INVOKE_ACK", call, {"accepted": True})
            self._events.say("CHUNK", call, {"channel": "stderr", "data": f"running tool: {call['tool_name']}\n"})
            if self._hold_s:
                asyncio.get_running_loop().call_later(self._hold_s, self._finish, call)
            else:
                self._finish(call)
        elif path.startswith(b"/internal/bridge/cancel"):
            call = orjson.loads(body)
            self._answer(b"202 Accepted", b'{"req_id":"%s","status":"sent"}\n' % call["req_id"].encode())
            self._events.say("CANCEL_ACK", call, {"will_cancel": True})
        elif path.startswith(b"/internal/bridge/events"):
            self._events.subscribe(self._transport)
        else:
            self._answer(b"404 Not Found", NOT_FOUND)

    def _finish(self, call: dict[str, Any]) -> None:
        self._events.say("RESULT", call, {"ok": True, "result_json": {"echo": None}})

    def _answer(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        self._transport.write(head + body)


async def serve(hold_s: float) -> None:
    """Serve on a free port of 127.0.0.1, printed first, until killed."""
    events = Events()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(events, hold_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=float, default=0.0)
    uvloop.run(serve(parser.parse_args().hold))
