"""The dev Gateway as a process of its own, which agents of other processes connect to, so that it alone can be killed.

``python -m tests.chaos.gateway --port PORT --link SOCKET --results FILE``. An agent's link carries envelopes, one JSON
object a line, as the real tunnel does (§3 of the contract): a RESULT is acknowledged once it is stored, and the store
outlives this process, as the Redis behind a real Gateway does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from daemon.dev.envelope import Json, encode, envelope
from daemon.dev.gateway import DevGateway

LINE_BYTES = 1 << 20


class KeptResults:
    """The last RESULT of each req_id in a file: what was acknowledged is there after any end of this process."""

    def __init__(self, path: Path) -> None:
        self._kept: dict[str, bytes] = {}
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            with contextlib.suppress(ValueError):  # a kill may come in the middle of a line, before it is acknowledged
                self._kept[json.loads(line)["req_id"]] = line
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(self._file, b"\n")

    def put(self, req_id: str, encoded: bytes) -> None:
        self._kept[req_id] = encoded
        os.write(self._file, encoded + b"\n")

    def get(self, req_id: str) -> bytes | None:
        return self._kept.get(req_id)


class Link:
    """One connected agent, to the Gateway what a ``Tunnel`` is: INVOKE and CANCEL go in, events come out."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.connected_at = self.last_seen_at = int(time.time())
        self.tools: list[Json] | None = None
        self.online = True
        self._writer = writer

    def send(self, message: Json) -> None:
        if not self._writer.is_closing():
            self._writer.write(encode(message) + b"\n")

    async def deliver(self, letter: Json) -> None:
        self.send(letter)

    async def close(self) -> None:
        self._writer.close()


class LinkedGateway(DevGateway):
    """The dev Gateway whose agents are elsewhere."""

    def __init__(self, results: Path) -> None:
        super().__init__()
        self._results: Any = KeptResults(results)

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one agent's connection until it ends."""
        link, agent_id = Link(writer), ""
        with contextlib.suppress(ConnectionError):
            async for line in reader:
                event = json.loads(line)
                agent_id = event["agent_id"]
                link.last_seen_at = int(time.time())
                if event["type"] == "HELLO":
                    self._tunnels[agent_id] = link  # the newest wins, silently
                    continue
                if event["type"] == "TOOLS":
                    link.tools = event["payload"]["tools"]
                self.publish(event)
                if event["type"] == "RESULT":
                    link.send(envelope("RESULT_ACK", agent_id, event["req_id"], {}))
        writer.close()
        if self._tunnels.get(agent_id) is link:
            del self._tunnels[agent_id]
            self.publish(envelope("DISCONNECT", agent_id, None, None))


async def main() -> None:
    """Until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--link", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    given = parser.parse_args()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    gateway = LinkedGateway(given.results)
    url = await gateway.start(port=given.port)
    given.link.unlink(missing_ok=True)  # a killed one leaves its socket behind
    links = await asyncio.start_unix_server(gateway.welcome, given.link, limit=LINE_BYTES)
    sys.stderr.write(json.dumps({"message": "gateway ready", "url": url}) + "\n")
    sys.stderr.flush()
    await stop.wait()
    links.close()
    await gateway.stop()


if __name__ == "__main__":
    uvloop.run(main())
