"""The plant: Postgres, Valkey, the dev Gateway, its agent and three nodes, each a process that is hit by its pid alone.

``plant()`` starts everything and ends everything. ``hit`` carries out one fault on one target and brings it back as a
supervisor would. Postgres keeps fsync on; Valkey keeps nothing, so each of its restarts is empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis.asyncio

from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from daemon.dev.processes import free_port
from daemon.store.migrate import migrate
from tests.api.harness import QUICK, SECRET
from tests.chaos.plan import NODES, Fault
from tests.cluster.harness import TIMINGS, Nursery, Process
from tests.free_agents import free_agents
from tests.patience import eventually, let_pass

SETTINGS: dict[str, Any] = QUICK | TIMINGS | {"sse_heartbeat_s": 1, "ack_timeout_s": 5, "postgres_pool": 10}
LEASE_TTL_S = float(SETTINGS["lease_ttl_s"])
START_S = 60.0
"""A busy machine may need that long until a process answers."""
RESTART_PAUSE_S = 0.5
DRAIN_S = 45.0
"""Longest drain: open calls may take ``drain_s``, and what is down meanwhile is waited for."""
COUNT_TAKEOVERS = """
CREATE TABLE chaos_takeovers (run_id uuid NOT NULL, epoch bigint NOT NULL);
CREATE FUNCTION count_takeover() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO chaos_takeovers VALUES (NEW.id, NEW.epoch); RETURN NULL; END $$;
CREATE TRIGGER chaos_takeover AFTER UPDATE ON workflow_runs FOR EACH ROW
    WHEN (OLD.owner IS NOT NULL AND NEW.owner IS NOT NULL AND NEW.owner <> OLD.owner) EXECUTE FUNCTION count_takeover();
"""
"""A claim of a run that somebody else still owned; one that was let go or handed over had no owner any more."""


class Plant:
    """Everything that runs. Targets are named as in the plan."""

    def __init__(self, home: Path, nursery: Nursery) -> None:
        self.nursery = nursery
        self.home = home
        self.logs = home / "logs"
        self.logs.mkdir()
        self.postgres = EmbeddedPostgres(home / "postgres")
        self.valkey = EmbeddedValkey()
        self.ledger = home / "ledger.jsonl"
        self.hits: Counter[str] = Counter()
        self.faults: list[str] = []
        self._ports = {name: free_port() for name in (*NODES, "gateway")}
        self._processes: dict[str, Process] = {}
        self._locks = {name: asyncio.Lock() for name in (*NODES, "postgres", "valkey", "gateway")}

    @property
    def bases(self) -> list[str]:
        """Where the nodes answer, when they do."""
        return [f"http://127.0.0.1:{self._ports[name]}" for name in NODES]

    async def start(self) -> None:
        await asyncio.gather(_in_thread(self.postgres.start), _in_thread(self.valkey.start))
        await _in_thread(self._prepare_database)
        await self._begin("gateway")
        agent = ("--link", str(self.home / "link"), "--ledger", str(self.ledger))
        self._processes["agent"] = await self.nursery.bear(
            "agent", "tests.chaos.agent", *agent, log=self.logs / "agent.log"
        )
        await self._processes["agent"].ready("agent ready")
        await asyncio.gather(*(self._begin(name) for name in NODES))

    async def stop(self) -> None:
        """End everything, whatever its state."""
        for process in self._processes.values():
            if process.process.returncode is None:
                await process.kill()
            if process.reading is not None:
                await process.reading
        for server in (self.valkey, self.postgres):
            with contextlib.suppress(Exception):
                _signal_tree(server.pid, signal.SIGCONT)
            await _in_thread(server.stop)

    async def busy(self, target: str, *, within_s: float) -> bool:
        """Whether the target still suffers from another fault after ``within_s``."""
        try:
            await eventually(lambda: not self._locks[target].locked(), within_s=within_s)
        except AssertionError:
            return True
        return False

    async def hit(self, fault: Fault) -> None:
        """One fault from beginning to end; a target suffers one at a time."""
        async with self._locks[fault.target]:
            self.hits[f"{fault.target.partition('-')[0]} {fault.what}"] += 1
            match fault.target, fault.what:
                case ("valkey", "flush"):
                    async with redis.asyncio.Redis.from_url(self.valkey.url) as connection:
                        await connection.flushall()
                case ("postgres" | "valkey" as name, what):
                    await self._hit_server(getattr(self, name), what, fault.for_s)
                case (name, "stop"):
                    self._processes[name].signal(signal.SIGSTOP)
                    await let_pass(fault.for_s)
                    self._processes[name].signal(signal.SIGCONT)
                case (name, what):
                    await (self._processes[name].kill() if what == "kill" else self._drain(name))
                    await let_pass(fault.for_s)
                    await self._begin(name)

    async def _hit_server(self, server: EmbeddedPostgres | EmbeddedValkey, what: str, for_s: float) -> None:
        match what:
            case "stop":
                _signal_tree(server.pid, signal.SIGSTOP)
                await let_pass(for_s)
                _signal_tree(server.pid, signal.SIGCONT)
            case _:
                if what == "kill":
                    _signal_tree(server.pid, signal.SIGKILL)
                await _in_thread(server.stop)
                await let_pass(for_s)
                await _in_thread(server.start)

    async def _drain(self, name: str) -> None:
        """SIGTERM: it must end by itself, with 0."""
        process = self._processes[name]
        process.signal(signal.SIGTERM)
        try:
            code = await process.gone(DRAIN_S)
        except TimeoutError:
            self.faults.append(f"{name} did not end within {DRAIN_S:.0f} s of SIGTERM")
            await process.kill()
        else:
            if code != 0:
                self.faults.append(f"{name} ended with {code} after SIGTERM")

    async def _begin(self, name: str) -> None:
        """Start a node or the Gateway, again where it gives up because something it needs is away."""
        until = asyncio.get_running_loop().time() + START_S
        while True:
            if name == "gateway":
                given = ("--link", str(self.home / "link"), "--results", str(self.home / "results.jsonl"))
                port = ("--port", str(self._ports[name]))
                process = await self.nursery.bear(
                    name, "tests.chaos.gateway", *port, *given, log=self.logs / f"{name}.log"
                )
            else:
                process = await self.nursery.bear(
                    name, "daemon", "serve", log=self.logs / f"{name}.log", **self._settings(name)
                )
            self._processes[name] = process
            try:
                return await process.ready(f"{'gateway' if name == 'gateway' else 'node'} ready", within_s=START_S)
            except AssertionError:
                if asyncio.get_running_loop().time() > until:
                    raise
                await let_pass(RESTART_PAUSE_S)

    def _settings(self, name: str) -> dict[str, Any]:
        where = {"postgres_url": self.postgres.url, "redis_url": self.valkey.url, "jwt_secret": SECRET}
        where |= {"gateway_url": f"http://127.0.0.1:{self._ports['gateway']}"}
        return SETTINGS | where | {"node_name": name, "port": self._ports[name], "log_level": "INFO"}

    def _prepare_database(self) -> None:
        migrate(self.postgres.url)
        free_agents(self.postgres.url)
        with psycopg.connect(self.postgres.url, autocommit=True) as connection:
            connection.execute(COUNT_TAKEOVERS)


def _signal_tree(pid: int, number: signal.Signals) -> None:
    """A server and its children: Postgres' sessions are processes of their own, and would outlive it for a moment."""
    server = psutil.Process(pid)
    for process in (server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


async def _in_thread(work: Callable[[], object]) -> None:
    """Blocking work in a thread. A cancellation waits for its end: what it starts must not outlive us unseen."""
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait({working})
        raise


def _home() -> Path:
    """A new directory, which Postgres can walk through as another user."""
    home = Path(tempfile.mkdtemp(prefix="runwarden-chaos-")).resolve()
    home.chmod(0o755)
    return home


@asynccontextmanager
async def plant(keep: Callable[[], bool]) -> AsyncIterator[Plant]:
    """Everything started; on leaving all of it has ended, and its files are gone unless ``keep`` says otherwise."""
    async with Nursery("daemon.node", "daemon.cli", "tests.chaos.gateway", "tests.chaos.agent") as nursery:
        opened = Plant(_home(), nursery)
        try:
            await opened.start()
            yield opened
        finally:
            await opened.stop()
            shutil.copy(opened.postgres.log_path, opened.logs)
            shutil.rmtree(opened.home / "postgres" if keep() else opened.home, ignore_errors=True)
