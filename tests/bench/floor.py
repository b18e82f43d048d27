"""The floor: what a Python loop without any engine can do on this machine. A process of its own.

Serial runs in asyncio tasks; each step is one HTTP call to the Gateway, its RESULT from the event stream, and one
durable record (fsync) before the next call. Records of many runs that come while an INSERT is under way are gathered
into the next one. There is no intent before the call, no state, no log, no owner: nothing could go on after a crash.

    python -m tests.bench.floor --client aiohttp --postgres URL --gateway PORT --runs 1000 --steps 10 --inflight 200

``--client aiohttp`` is the named floor; ``thin`` is the same loop over ``thin.Client``. Prints ``ready``, waits for a
line, prints ``{"seconds": …}``, and waits for the end of its input, so that its CPU and memory can be read.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

import asyncpg
import orjson
import uuid_utils.compat as uuid7
import uvloop

from tests.bench.thin import Client, Lines, request

if TYPE_CHECKING:
    import aiohttp

BRIDGE = "/internal/bridge"
TABLE = """
CREATE TABLE IF NOT EXISTS bench_records (
    run_id uuid NOT NULL, step integer NOT NULL, req_id text NOT NULL, result json NOT NULL,
    at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (run_id, step)
)
"""
INSERT = """
INSERT INTO bench_records (run_id, step, req_id, result)
SELECT run_id, step, req_id, result::json FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[])
    AS t(run_id, step, req_id, result)
"""
RESULT = re.compile(rb'"type":"RESULT","agent_id":"[^"]*","req_id":"([^"]*)","ts":\d+,"payload":(\{.*\})\}')

Record = tuple[UUID, int, str, str]


class Journal:
    """Group commit: whatever is waiting goes into one INSERT, which is one commit."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection
        self._waiting: list[tuple[Record, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    def write(self, record: Record) -> asyncio.Future[None]:
        """Done when the record is on disk."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, written))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._commit())
        return written

    async def _commit(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            columns = zip(*(record for record, _ in batch), strict=True)
            await self._connection.execute(INSERT, *(list(column) for column in columns))
            for _, written in batch:
                written.set_result(None)


class Caller(Protocol):
    """A way to call tools."""

    async def call(self, req_id: str, body: dict[str, Any]) -> str:
        """Call, and wait for the RESULT's payload as JSON text."""


class AiohttpCaller:
    """The usual way: aiohttp for the calls and for the event stream."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base
        self._results: dict[str, asyncio.Future[str]] = {}

    async def call(self, req_id: str, body: dict[str, Any]) -> str:
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._results[req_id] = result
        async with self._session.post(self._base + "/invoke", data=orjson.dumps(body)) as answer:
            assert answer.status == 202, answer.status
            await answer.read()
        return await result

    async def listen(self, ready: asyncio.Event) -> None:
        buffer = b""
        async with self._session.get(self._base + "/events") as stream:
            async for chunk in stream.content.iter_any():
                ready.set()
                *frames, buffer = (buffer + chunk).split(b"\n\n")
                for frame in frames:
                    if frame.startswith(b"event: bridge\ndata: "):
                        self._heard(orjson.loads(frame[20:]))

    def _heard(self, event: dict[str, Any]) -> None:
        if event["type"] == "RESULT":
            self._results.pop(event["req_id"]).set_result(orjson.dumps(event["payload"]).decode())


class ThinCaller:
    """The same calls over the thin client; only RESULTs are read."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._results: dict[str, asyncio.Future[str]] = {}
        self._buffer = b""
        self.ready = asyncio.Event()

    async def call(self, req_id: str, body: dict[str, Any]) -> str:
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._results[req_id] = result
        status, _ = await self._client.send(request("POST", BRIDGE + "/invoke", orjson.dumps(body)))
        assert status == 202, status
        return await result

    def heard(self, data: bytes) -> None:
        """Bytes of the event stream."""
        self.ready.set()
        whole, mark, self._buffer = (self._buffer + data).rpartition(b"\n\n")
        if not mark:
            self._buffer = whole + self._buffer
            return
        for found in RESULT.finditer(whole):
            self._results.pop(found[1].decode()).set_result(found[2].decode())


async def carry(caller: Caller, journal: Journal, *, runs: int, steps: int, inflight: int, hold_ms: int) -> float:
    """Carry so many runs, so many at a time; answers the seconds."""
    ids = iter([uuid7.uuid7() for _ in range(runs)])
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(inflight, runs)):
            group.create_task(_one_after_another(caller, journal, ids, steps=steps, hold_ms=hold_ms))
    return time.monotonic() - began


async def _one_after_another(
    caller: Caller, journal: Journal, ids: Iterator[UUID], *, steps: int, hold_ms: int
) -> None:
    for run_id in ids:
        for step in range(steps):
            req_id = f"{run_id.hex[-22:]}{step:022d}"
            body = {
                "req_id": req_id,
                "agent_id": "bench",
                "tool_name": "bench__echo",
                "arguments": {"hold_ms": hold_ms, "last": step == steps - 1},
                "timeout_ms": 600_000,
                "stream": True,
            }
            result = await caller.call(req_id, body)
            await journal.write((run_id, step, req_id, result))


async def main(arguments: argparse.Namespace) -> None:
    """As the module says."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        connection = await asyncpg.connect(arguments.postgres)
        stack.push_async_callback(connection.close)
        await connection.execute(TABLE)
        caller: AiohttpCaller | ThinCaller
        if arguments.client == "aiohttp":
            import aiohttp  # not in the thin loop's memory

            session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)))
            caller, ready = AiohttpCaller(session, f"http://127.0.0.1:{arguments.gateway}{BRIDGE}"), asyncio.Event()
            listening = asyncio.create_task(caller.listen(ready))
            stack.callback(listening.cancel)
        else:
            caller = ThinCaller(await stack.enter_async_context(Client(arguments.gateway)))
            ready, heard = caller.ready, caller.heard
            transport, _ = await loop.create_connection(
                lambda: Lines(BRIDGE + "/events", heard), "127.0.0.1", arguments.gateway
            )
            stack.callback(transport.close)
        await ready.wait()
        print("ready", flush=True)
        await loop.run_in_executor(None, sys.stdin.readline)
        seconds = await carry(
            caller,
            Journal(connection),
            runs=arguments.runs,
            steps=arguments.steps,
            inflight=arguments.inflight,
            hold_ms=arguments.hold_ms,
        )
        print(orjson.dumps({"seconds": seconds}).decode(), flush=True)
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--client", choices=["aiohttp", "thin"], required=True)
    parser.add_argument("--postgres", required=True)
    for name in ("gateway", "runs", "steps", "inflight"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--hold-ms", type=int, default=0)
    uvloop.run(main(parser.parse_args()))
