"""The stack under measurement, each part a process of its own: Postgres, Valkey, the bench Gateway, nodes.

``open_stack`` starts what is missing and ends what it started. Postgres has its default durability (fsync on); each
measured piece gets a migrated database and a prefix in Redis of its own (``place``), and nodes start by the real entry
point, ``python -m daemon serve``. Figures are only worth something beside others of the same call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import psutil
import redis.asyncio

from daemon.auth.tokens import mint
from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from daemon.fabric.keys import Keys
from daemon.store.migrate import migrate
from tests.bench.nursery import Born, Nursery
from tests.bench.thin import Client, request

SECRET = "a secret for benchmarks only, never for a node that others reach"
USER = "bench"
AGENT = "bench"
DRIVER = "bench_driver"
"""The role of the measurements' own statements, so that the nodes' can be told from them."""
TEMPLATE = "bench_template"
POLL_S = 0.01
READY_S = 60.0
_numbers = count(1)


@dataclass(slots=True)
class Node:
    """A node that runs."""

    name: str
    process: subprocess.Popen[bytes] | Born
    log: Path
    port: int
    ready_s: float
    """From the start of the process to "node ready"."""

    def warnings(self) -> list[str]:
        """Lines of its log that say WARNING or worse: a measurement with such is no good one."""
        lines = self.log.read_bytes().splitlines()
        return [
            line.decode() for line in lines if not (line.startswith(b"{") and orjson.loads(line)["level"] == "info")
        ]


@dataclass(slots=True)
class Place:
    """A migrated database and a prefix in Redis, for one measured piece."""

    stack: Stack
    database: str
    url: str
    prefix: str
    sql: asyncpg.Connection[asyncpg.Record]
    nodes: list[Node] = field(default_factory=list)

    @property
    def keys(self) -> Keys:
        return Keys(self.prefix)

    async def start_node(self, name: str = "node", *, under: tuple[str, ...] = ("daemon",), **settings: Any) -> Node:
        """Start a node here and wait until it is ready; ``under``: the module that serves, and its arguments."""
        given = {
            "postgres_url": self.url,
            "redis_url": self.stack.valkey.url,
            "redis_prefix": self.prefix,
            "gateway_url": f"http://127.0.0.1:{self.stack.gateway_port}",
            "jwt_secret": SECRET,
            "port": 0,
            "node_name": name,
            **settings,
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RUNWARDEN_")}
        environment = kept | {f"RUNWARDEN_{key.upper()}": str(value) for key, value in given.items()}
        log = self.stack.home / f"{self.database}-{name}-{next(_numbers)}.log"
        began = time.monotonic()
        process: subprocess.Popen[bytes] | Born
        if self.stack.nursery is not None:
            process = self.stack.nursery.bear(under[0], [*under[1:], "serve"], environment, log)
        else:
            with log.open("wb") as written:
                command = [sys.executable, "-m", *under, "serve"]
                process = subprocess.Popen(command, env=environment, stderr=written, stdout=subprocess.DEVNULL)
        self.stack.processes[name] = process
        ready = await _ready(process, log)
        node = Node(name, process, log, int(ready["url"].rsplit(":", 1)[1]), time.monotonic() - began)
        self.nodes.append(node)
        return node

    async def stop_nodes(self) -> list[str]:
        """Stop every node here as a deploy would (SIGTERM); answers the warnings that they wrote."""
        warnings: list[str] = []
        for node in self.nodes:
            node.process.terminate()
            await asyncio.to_thread(node.process.wait)
            self.stack.processes.pop(node.name, None)
            warnings += node.warnings()
        self.nodes.clear()
        return warnings


@dataclass(slots=True)
class Stack:
    """Servers, and the processes whose CPU and memory are counted."""

    home: Path
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    admin: asyncpg.Connection[asyncpg.Record]
    redis: redis.asyncio.Redis
    gateway_port: int
    gateway: Client
    processes: dict[str, subprocess.Popen[bytes] | Born] = field(default_factory=dict)
    nursery: Nursery | None = None

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """A fresh place; its nodes and its data end with it. What a Gateway counted before is forgotten."""
        name = f"bench_{os.getpid()}_{next(_numbers)}"
        await self.admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        url = url_of(self.postgres, name)
        sql = await asyncpg.connect(url, user=DRIVER)
        place = Place(self, name, url, name, sql)
        await self.reset()
        try:
            yield place
        finally:
            await place.stop_nodes()
            await sql.close()
            await self.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
            found = [key async for key in self.redis.scan_iter(match=f"{name}:*", count=10_000)]
            if found:
                await self.redis.unlink(*found)

    async def reset(self) -> None:
        """Let the Gateway count from zero."""
        await self.gateway.send(request("GET", "/bench/reset"))

    async def state(self, *, gaps: bool = False) -> dict[str, Any]:
        """What the Gateway counted, see ``gateway.Count``."""
        _, body = await self.gateway.send(request("GET", "/bench/state?gaps" if gaps else "/bench/state"))
        told: dict[str, Any] = orjson.loads(body)
        return told

    async def finished(self, runs: int) -> None:
        """Until the Gateway has said the last RESULT of so many runs."""
        await self.gateway.send(request("GET", f"/bench/finished/{runs}"))

    def usage(self) -> Usage:
        """CPU so far and memory now, by process; Postgres with its children, the driver is this process."""
        known = {name: psutil.Process(one.pid) for name, one in self.processes.items()}
        known |= {"postgres": psutil.Process(self.postgres.pid), "valkey": psutil.Process(self.valkey.pid)}
        known |= {"driver": psutil.Process()}
        usage = Usage(time.monotonic())
        for name, process in known.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                family = [process, *process.children()] if name == "postgres" else [process]
                usage.cpu_s[name] = sum(_cpu_s(one, ended=name == "postgres") for one in family)
                usage.rss_mb[name] = sum(_rss_mb(one, shared=name == "postgres") for one in family)
        return usage


@dataclass(slots=True)
class Usage:
    """CPU seconds used so far and peak RSS in MB, by process (Postgres: memory now, shared pages counted once)."""

    at: float
    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_mb: dict[str, float] = field(default_factory=dict)

    def since(self, before: Usage) -> dict[str, float]:
        """CPU seconds of each process between two looks; a process that is new counts from its start."""
        return {name: total - before.cpu_s.get(name, 0.0) for name, total in self.cpu_s.items()}


@contextlib.asynccontextmanager
async def open_stack(
    servers: tuple[EmbeddedPostgres, EmbeddedValkey] | None = None, *, counts: bool = False
) -> AsyncIterator[Stack]:
    """The stack without nodes; ``servers``: those that run already; ``counts``: Postgres counts statements."""
    async with AsyncExitStack() as opened:
        home = opened.enter_context(_directory())
        postgres, valkey = servers or await _servers(opened, home, counts=counts)
        await _prepare(postgres)
        gateway = subprocess.Popen([sys.executable, "-m", "tests.bench.gateway"], stdout=subprocess.PIPE)
        processes: dict[str, subprocess.Popen[bytes] | Born] = {"gateway": gateway}
        opened.callback(_end, processes)
        assert gateway.stdout is not None
        port = int(gateway.stdout.readline())
        admin = await asyncpg.connect(postgres.url)
        opened.push_async_callback(admin.close)
        client = await opened.enter_async_context(redis.asyncio.Redis.from_url(valkey.url))
        control = await opened.enter_async_context(Client(port, most=1))
        yield Stack(home, postgres, valkey, admin, client, port, control, processes)


def token() -> str:
    """A bearer token of the benchmarks' user."""
    return mint(USER, SECRET, lifetime_s=86_400)


def url_of(server: EmbeddedPostgres, database: str) -> str:
    """Where to reach a database of a server."""
    return server.url.replace("@/postgres?", f"@/{database}?")


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    """On a disk, not in memory: fsync shall cost what it costs."""
    home = Path(tempfile.mkdtemp(prefix="runwarden-bench-"))
    home.chmod(0o755)
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def _servers(opened: AsyncExitStack, home: Path, *, counts: bool) -> tuple[EmbeddedPostgres, EmbeddedValkey]:
    postgres = opened.enter_context(EmbeddedPostgres(home / "postgres"))
    if counts:
        admin = await asyncpg.connect(postgres.url)
        await admin.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        await admin.close()
        postgres.stop()
        postgres.start()
    return postgres, opened.enter_context(EmbeddedValkey())


async def _prepare(postgres: EmbeddedPostgres) -> None:
    """The template that places are cloned from."""
    admin = await asyncpg.connect(postgres.url)
    try:
        if await admin.fetchval("SELECT true FROM pg_database WHERE datname = $1", TEMPLATE):
            return
        await admin.execute(f"CREATE DATABASE {TEMPLATE}")
        await admin.execute(f"CREATE ROLE {DRIVER} SUPERUSER LOGIN")
    finally:
        await admin.close()
    url = url_of(postgres, TEMPLATE)
    await asyncio.to_thread(migrate, url)
    template = await asyncpg.connect(url)
    await template.execute("INSERT INTO agent_bindings (agent_id, owner, bound_by) VALUES ($1, $2, $2)", AGENT, USER)
    await template.close()


async def _ready(process: subprocess.Popen[bytes] | Born, log: Path) -> dict[str, Any]:
    """Wait for the line of the log that says so."""
    until = time.monotonic() + READY_S
    while True:
        for line in log.read_text().splitlines() if log.exists() else ():
            if '"node ready"' in line:
                told: dict[str, Any] = orjson.loads(line)
                return told
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the node did not start:\n" + log.read_text())
        await asyncio.sleep(POLL_S)


def _end(processes: dict[str, subprocess.Popen[bytes] | Born]) -> None:
    for process in processes.values():
        process.kill()
        process.communicate()  # closes its pipes too


def _cpu_s(process: psutil.Process, *, ended: bool) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        own = float(times.user + times.system)
        return own + (times.children_user + times.children_system if ended else 0.0)
    return 0.0


def _rss_mb(process: psutil.Process, *, shared: bool) -> float:
    """Peak RSS where the system tells it, else RSS now; ``shared``: this process's share of memory now."""
    with contextlib.suppress(psutil.Error, OSError):
        if shared:
            full = process.memory_full_info()
            return float(getattr(full, "pss", full.uss)) / 1e6
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    with contextlib.suppress(psutil.Error):
        return float(process.memory_info().rss) / 1e6
    return 0.0
