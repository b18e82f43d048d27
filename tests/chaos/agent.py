"""The agent as a process of its own: it runs the tools, keeps the ledger, and comes back whenever the Gateway does.

``python -m tests.chaos.agent --link SOCKET --ledger FILE``. It behaves as the contract saw the real one (§5): when its
connection ends it cancels the calls in flight, keeps every RESULT that was not acknowledged, and sends them all again
after it has reconnected. The ledger has a line for each execution, written before the tool does anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from contextvars import ContextVar
from pathlib import Path

import uvloop

from daemon.dev.agent import Emit, ToolFailure
from daemon.dev.envelope import Json, encode, envelope
from daemon.dev.scripted_agent import ScriptedAgent, text_result
from daemon.dev.tunnel import Execution, Tunnel
from daemon.dev.weather import Weather
from tests.chaos.gateway import LINE_BYTES

AGENT = "agent-1"
QUICK_S = 0.2
RECONNECT_S = 0.2
RECONNECT_MAX_S = 1.6
READ_ONLY: Json = {"readOnlyHint": True, "idempotentHint": True}
ADDITIVE: Json = {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": False}
"""Not of high risk, so that a bare word approves it."""
DESTRUCTIVE: Json = {"readOnlyHint": False, "destructiveHint": True, "idempotentHint": False}

_call: ContextVar[Execution] = ContextVar("call")


class Ledger(list[Execution]):
    """Appending is writing: one line with one ``write``, which the kernel keeps whatever becomes of this process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def append(self, execution: Execution) -> None:
        """Before the tool begins, in the task of its call."""
        line = {"at": time.time(), "req_id": execution.req_id, "tool": execution.tool_name}
        os.write(self._file, json.dumps(line).encode() + b"\n")
        super().append(execution)
        _call.set(execution)


class ChaosTools(ScriptedAgent):
    """Tools named by how they behave; those that wait take ``seconds``."""

    def __init__(self) -> None:
        super().__init__(AGENT)
        self._failed_once: set[str] = set()
        self.tool("quick", self._quick, annotations=DESTRUCTIVE)
        self.tool("slow", self._slow, annotations=DESTRUCTIVE)
        self.tool("adding", self._slow, annotations=ADDITIVE)
        self.tool("stubborn", self._stubborn, annotations=DESTRUCTIVE)
        self.tool("failing", self._failing, annotations=DESTRUCTIVE)
        self.tool("failing_once", self._failing_once, annotations=DESTRUCTIVE)
        self.tool("chatty", self._chatty, annotations=DESTRUCTIVE)
        self.tool("upsert", self._slow)
        self.tool("lookup", self._slow, annotations=READ_ONLY)

    async def _quick(self, arguments: Json | None, emit: Emit) -> Json:
        await asyncio.sleep(QUICK_S)
        return text_result("done")

    async def _slow(self, arguments: Json | None, emit: Emit) -> Json:
        emit("stdout", "slowly\n")
        await asyncio.sleep((arguments or {})["seconds"])
        return text_result("done at last")

    async def _stubborn(self, arguments: Json | None, emit: Emit) -> Json:
        """Finishes its work whoever cancels it, and says so, be it after a reconnection."""
        work = asyncio.ensure_future(asyncio.sleep((arguments or {})["seconds"]))
        while not work.done():
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                emit("stderr", "I finish what I began\n")
        return text_result("done all the same")

    async def _failing(self, arguments: Json | None, emit: Emit) -> Json:
        raise ToolFailure("it is broken")

    async def _failing_once(self, arguments: Json | None, emit: Emit) -> Json:
        """Fails in each run until it has failed once."""
        run = _call.get().req_id[:22]
        if run not in self._failed_once:
            self._failed_once.add(run)
            return text_result("the disk is full", is_error=True)
        return text_result("mended")

    async def _chatty(self, arguments: Json | None, emit: Emit) -> Json:
        for number in range((arguments or {})["lines"]):
            emit("stdout" if number % 3 else "stderr", f"{number:05d} ".ljust(120, ".") + "\n")
            await asyncio.sleep((arguments or {})["pace_s"])
        return text_result("all said")


class Uplink:
    """The agent's end of the link. ``run`` until cancelled."""

    def __init__(self, tools: ChaosTools, ledger: Ledger, link: Path) -> None:
        self._link = link
        self._tunnel = Tunnel(tools, self._publish, ledger, Weather())
        self._pending: dict[str, Json] = {}
        """RESULTs that no Gateway has acknowledged, oldest first."""
        self._writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        await self._tunnel.open()
        pause_s = RECONNECT_S
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(self._link, limit=LINE_BYTES)
                pause_s = RECONNECT_S
                await self._serve(reader)
            except OSError:
                pass
            if self._writer is not None:
                self._writer.close()
                self._writer = None
                self._cut()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        self._send(envelope("HELLO", AGENT, None, {"resume": {"pending_result_req_ids": list(self._pending)}}))
        self._send(envelope("TOOLS", AGENT, None, {"tools": self._tunnel.tools}))
        for result in self._pending.values():
            self._send(result)
        async for line in reader:
            message = json.loads(line)
            match message["type"]:
                case "INVOKE":
                    self._tunnel.invoke(message)
                case "CANCEL":
                    self._tunnel.cancel(message["req_id"])
                case "RESULT_ACK":
                    self._pending.pop(message["req_id"], None)

    def _cut(self) -> None:
        """The connection has ended: cancel what runs; whatever comes of it is told after the reconnection."""
        for req_id in list(self._tunnel._by_req_id):
            self._tunnel.cancel(req_id)

    def _publish(self, event: Json) -> None:
        if event["type"] == "RESULT":
            self._pending[event["req_id"]] = event
        self._send(event)

    def _send(self, message: Json) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(encode(message) + b"\n")


async def main() -> None:
    """Until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--link", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    given = parser.parse_args()
    uplink = Uplink(ChaosTools(), Ledger(given.ledger), given.link)
    sys.stderr.write(json.dumps({"message": "agent ready"}) + "\n")
    sys.stderr.flush()
    await uplink.run()


if __name__ == "__main__":
    uvloop.run(main())
