"""Many watchers of event streams as a process of its own, cheap enough not to be what is measured.

    python -m tests.bench.watchers            (talks over its standard input and output, a line of JSON each)

1. in: ``{"port", "token", "runs", "each", "slow"}``: so many watchers of each run; slow ones have the smallest receive
   buffer there is, and stop reading after the replay
2. out: ``{"connected": seconds}`` when every replay is done
3. in: ``{"windows": [[from, to], …]}`` (epoch s), when every stream shall have ended
4. out: ``{"windows": [{"deliveries", "ms": […]}, …], "seqs": {run: [[last seq, whether 1 … last in order], …]}}``

A latency runs from the event's ``created_at`` (the time of its turn, before its commit) to the bytes' arrival here.
"""

from __future__ import annotations

import asyncio
import re
import resource
import socket
import sys
import time
from datetime import datetime
from typing import Any

import orjson
import uvloop

from tests.bench.thin import request

EVENT = re.compile(rb'id: (\d+)\nevent: [^\n]*\ndata: [^\n]*?"created_at":"([^"]*)"')
REPLAYED = b"event: replay.done\n"
AT_ONCE = 100
"""Connections being opened at the same time."""
SMALLEST = 4096
PATIENCE_S = 120.0


class Watcher(asyncio.Protocol):
    """One client of one run's stream; the sizes of chunks stand between events, where ``EVENT`` skips them."""

    def __init__(self, run_id: str, bearer: str, *, slow: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.run_id = run_id
        self.replayed: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.last_seq = 0
        self.ordered = True
        self.got: list[tuple[float, bytes]] = []
        """When it came (epoch s) and its ``created_at``, of each event."""
        self._request = request("GET", f"/v1/workflow-runs/{run_id}/events", token=bearer)
        self._slow = slow
        self._rest = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.replayed.done():
            self.replayed.set_exception(ConnectionResetError(f"refused: {self._rest[:200]!r}"))
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        whole, _, self._rest = (self._rest + data).rpartition(b"\n\n")
        for found in EVENT.finditer(whole):
            seq = int(found[1])
            self.ordered = self.ordered and seq == self.last_seq + 1
            self.last_seq = seq
            self.got.append((now, found[2]))
        if not self.replayed.done() and REPLAYED in whole:
            self.replayed.set_result(None)
            if self._slow:
                self._transport.pause_reading()
        if self._rest.endswith(b"\r\n0\r\n\r\n"):
            self._transport.close()

    def close(self) -> None:
        self._transport.close()


async def watch(port: int, run_id: str, bearer: str, *, slow: bool = False) -> Watcher:
    """A watcher whose replay is done. Raises ConnectionResetError when the stream is refused."""
    loop = asyncio.get_running_loop()
    if slow:
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALLEST)
        narrow.setblocking(False)
        await loop.sock_connect(narrow, ("127.0.0.1", port))
        _, watcher = await loop.create_connection(lambda: Watcher(run_id, bearer, slow=True), sock=narrow)
    else:
        _, watcher = await loop.create_connection(lambda: Watcher(run_id, bearer), "127.0.0.1", port)
    await watcher.replayed
    return watcher


async def main() -> None:
    """As the module says."""
    loop = asyncio.get_running_loop()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard if hard != resource.RLIM_INFINITY else 65_536), hard))
    plan = orjson.loads(sys.stdin.buffer.readline())
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(run_id: str) -> Watcher:
        async with turns:
            return await watch(plan["port"], run_id, plan["token"], slow=plan["slow"])

    began = time.monotonic()
    watchers = await asyncio.gather(*(one(run_id) for run_id in plan["runs"] for _ in range(plan["each"])))
    _say({"connected": time.monotonic() - began})
    line = await loop.run_in_executor(None, sys.stdin.buffer.readline)
    if not plan["slow"]:
        await asyncio.wait([watcher.ended for watcher in watchers], timeout=PATIENCE_S)
    seqs: dict[str, list[tuple[int, bool]]] = {}
    for watcher in watchers:
        seqs.setdefault(watcher.run_id, []).append((watcher.last_seq, watcher.ordered))
    windows = [_window(watchers, *window) for window in orjson.loads(line)["windows"]]
    _say({"windows": windows, "seqs": seqs})


def _window(watchers: list[Watcher], begin: float, end: float) -> dict[str, Any]:
    """The deliveries of events that were made between two moments."""
    made: dict[bytes, float] = {}
    ms: list[float] = []
    for watcher in watchers:
        for at, text in watcher.got:
            created = made.get(text)
            if created is None:
                created = made[text] = datetime.fromisoformat(text.decode()).timestamp()
            if begin <= created < end:
                ms.append(round((at - created) * 1000, 1))
    return {"deliveries": len(ms), "ms": ms}


def _say(told: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(told) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(main())
