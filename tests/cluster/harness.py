"""Nodes as real processes over one Postgres, one Valkey and one dev Gateway, whose ledger counts what really ran.

``Cluster.start`` starts ``python -m daemon serve``; a ``Process`` is stopped, continued, killed and drained by its pid.
Everything that was started has ended when the cluster is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from daemon.config import load
from daemon.dev.processes import free_port
from daemon.runtime.runner import Runner
from tests.api.harness import QUICK, SECRET, LoudGateway, Stack, Tools
from tests.patience import eventually

TIMINGS = {
    "lease_ttl_s": 2,
    "sweep_period_s": 0.5,
    "stale_after_s": 0.5,
    "linger_s": 0.3,
    "drain_s": 5,
    "log_hold_s": 0.05,
}
LINE_BYTES = 1 << 20
"""Longest line of a log; a traceback is one."""
TAKEOVER_S = TIMINGS["lease_ttl_s"] + 2 * TIMINGS["sweep_period_s"]
"""The contract: lease TTL + 2 sweep periods."""


@dataclass(slots=True)
class Process:
    """One node."""

    name: str
    process: asyncio.subprocess.Process | Born
    url: str = ""
    said: list[dict[str, Any]] = field(default_factory=list)
    reading: asyncio.Task[None] | None = None
    log: Path | None = None
    """Where what it says is kept besides, later lives after earlier ones."""

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def gone(self, within_s: float = 30) -> int:
        """Its exit code, once it has ended."""
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def kill(self) -> None:
        """SIGKILL, at once."""
        self.signal(signal.SIGKILL)
        await self.gone()

    def rss_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6

    async def read(self) -> None:
        """Keep what it logs; the first word of its API is ``url``."""
        assert self.process.stderr is not None
        with open(self.log or os.devnull, "ab") as kept:  # noqa: ASYNC230 - a local file, opened once in a life
            async for line in self.process.stderr:
                kept.write(line)
                with contextlib.suppress(ValueError):
                    self.said.append(json.loads(line))

    async def ready(self, word: str, *, within_s: float = 60) -> None:
        """Wait until it has said ``word``, which comes with its ``url``."""

        def up() -> dict[str, Any] | None:
            assert self.process.returncode is None, self.said
            return self.heard(word)

        said = await eventually(up, within_s=within_s, what=f"{self.name} being ready")
        assert said is not None
        self.url = said.get("url", "")

    def heard(self, message: str) -> dict[str, Any] | None:
        """The first log line with this message."""
        return next((line for line in self.said if line.get("message") == message), None)


@dataclass(slots=True)
class Born:
    """A process that a nursery bore, to the eye one of asyncio's."""

    pid: int
    stderr: asyncio.StreamReader
    returncode: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        await self.ended.wait()
        assert self.returncode is not None
        return self.returncode


class Nursery:
    """Starts Python modules in a moment, because they are imported already. Its children are killed when it is left."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._home = Path(tempfile.mkdtemp(prefix="rw-nursery-"))
        self._born: dict[int, Born] = {}
        self._readings: list[asyncio.Task[None]] = []
        self._fifos = itertools.count()
        self._births: asyncio.Queue[int] = asyncio.Queue()
        self._bearing = asyncio.Lock()

    async def __aenter__(self) -> Nursery:
        command = (sys.executable, "-m", "tests.e2e.nursery", *self._modules)
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        for born in self._born.values():
            born.send_signal(signal.SIGKILL)
        await asyncio.gather(*(born.wait() for born in self._born.values()), *self._readings)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._listening
        shutil.rmtree(self._home)

    async def bear(self, name: str, module: str, *arguments: str, log: Path | None = None, **settings: Any) -> Process:
        """As ``spawn``."""
        assert self._process.stdin is not None
        fifo = self._home / str(next(self._fifos))
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        order = {"module": module, "arguments": arguments, "environment": _environment(settings), "stderr": str(fifo)}
        async with self._bearing:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            pid = await self._births.get()
        stderr = asyncio.StreamReader(limit=LINE_BYTES)
        protocol = asyncio.StreamReaderProtocol(stderr)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb", 0))
        born = self._born[pid]
        born.stderr = stderr
        process = Process(name, born, log=log)
        process.reading = asyncio.create_task(process.read())
        process.reading.add_done_callback(lambda _: transport.close())
        self._readings.append(process.reading)
        return process

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            told = json.loads(line)
            if "born" in told:
                self._born[told["born"]] = Born(told["born"], asyncio.StreamReader())
                self._births.put_nowait(told["born"])
            else:
                born = self._born.pop(told["ended"])
                born.returncode = told["code"]
                born.ended.set()


def _environment(settings: dict[str, Any]) -> dict[str, str]:
    """Ours without what it says of Runwarden, and with these settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RUNWARDEN_")}
    return environment | {f"RUNWARDEN_{key.upper()}": str(value) for key, value in settings.items()}


async def spawn(name: str, module: str, *arguments: str, log: Path | None = None, **settings: Any) -> Process:
    """A Python module as a process, begun; ``settings`` are Runwarden's, and it sees no others."""
    environment = _environment(settings)
    command = (sys.executable, "-m", module, *arguments)
    process = Process(
        name, await asyncio.create_subprocess_exec(*command, env=environment, stderr=PIPE, limit=LINE_BYTES), log=log
    )
    process.reading = asyncio.create_task(process.read())
    return process


@dataclass(slots=True)
class Cluster:
    """Nodes, and what they share."""

    database: str
    redis_url: str
    redis_prefix: str
    gateway: LoudGateway
    tools: Tools
    http: aiohttp.ClientSession
    nodes: list[Process] = field(default_factory=list)

    async def start(self, name: str, *arguments: str, **settings: Any) -> Process:
        """A node that answers."""
        given = QUICK | TIMINGS | {"node_name": name, "log_level": "INFO"} | settings
        given |= {"postgres_url": self.database, "redis_url": self.redis_url, "redis_prefix": self.redis_prefix}
        given |= {"gateway_url": self.gateway.url}
        process = await spawn(name, "daemon", "serve", *arguments, **given)
        self.nodes.append(process)
        await process.ready("node ready")
        return process

    def at(self, node: Process) -> Stack:
        """How tests speak to one node."""
        settings = load(**QUICK, postgres_url=self.database, redis_url=self.redis_url, gateway_url=self.gateway.url)
        return Stack(node.url, self.http, self.gateway, self.tools, self.database, settings)

    async def metric(self, node: Process, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        async with self.http.get(node.url + "/metrics") as answer:
            text = await answer.text()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        fitting = [one.value for one in samples if one.name == name and labels.items() <= one.labels.items()]
        return sum(fitting)

    async def owners(self) -> Counter[str]:
        """How many runs each node owns, as Postgres knows it."""
        rows = await self.at(self.nodes[0]).sql("SELECT split_part(owner, '.', 1) AS node FROM workflow_runs")
        return Counter(row["node"] for row in rows if row["node"])

    async def statuses(self) -> Counter[str]:
        rows = await self.at(self.nodes[0]).sql("SELECT status FROM workflow_runs")
        return Counter(row["status"] for row in rows)

    def executions(self) -> Counter[str]:
        """How often each req_id was really executed at the tool side."""
        return Counter(execution.req_id for execution in self.gateway.ledger)

    async def ended(self, count: int, *, within_s: float = 30, status: str = "completed") -> float:
        """Wait until this many runs have this status; answers how long that took."""
        began = time.monotonic()

        async def all_there() -> bool:
            return (await self.statuses())[status] >= count

        await eventually(all_there, within_s=within_s, what=f"{count} runs {status}")
        return time.monotonic() - began


def runner_of(opened: Stack) -> Runner:
    """The inside of a node in this process, for tests that hold one exchange open at a bad moment."""
    assert opened.node is not None
    assert opened.node._runner is not None
    return opened.node._runner


class Gate:
    """Holds calls of ``method`` until it is opened, at last with its block; ``reached`` tells that one is waiting."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, method: str) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self._real: Callable[..., Awaitable[Any]] = getattr(owner, method)
        patch.setattr(owner, method, self._held)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()

    async def _held(self, *given: Any, **named: Any) -> Any:
        self.reached.set()
        await self.open.wait()
        return await self._real(*given, **named)


@asynccontextmanager
async def cluster(database: str, redis_url: str, redis_prefix: str) -> AsyncIterator[Cluster]:
    """No node yet; ``secret`` and timings are the tests'."""
    assert SECRET
    gateway, tools = LoudGateway(), Tools()
    gateway.add_agent(tools)
    await gateway.start(port=free_port())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        opened = Cluster(database, redis_url, redis_prefix, gateway, tools, http)
        try:
            yield opened
        finally:
            tools.release.set()
            for node in opened.nodes:
                if node.process.returncode is None:
                    node.signal(signal.SIGCONT)
                    await node.kill()
                if node.reading is not None:
                    await node.reading
            await gateway.stop()
