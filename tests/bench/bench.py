"""What every measurement shares: the stack as processes of its own, runs made in bulk, CPU and memory per process.

``Bench`` starts Postgres (default durability), Valkey, the bench Gateway and nodes; everything ends with it. Figures
are only worth something beside others of the same call: this machine may be shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import psutil
import redis.asyncio
import uuid_utils.compat as uuid7

from daemon.dev.embedded import EmbeddedPostgres, EmbeddedValkey
from daemon.store.migrate import migrate

LOOK_S = 0.05
SECRET = "a secret for benchmarks only, never for a node that others reach"
CREATE = """
WITH given AS (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bytea[]) AS t(id, command_id, nonce)),
runs AS (
    INSERT INTO workflow_runs (id, workflow_id, user_id, status, nonce, wake_at)
    SELECT id, $4, 'bench', 'running', nonce, now() + interval '1 hour' FROM given
), specs AS (
    INSERT INTO workflow_run_specs (run_id, snapshot) SELECT id, $5::text::json FROM given
)
INSERT INTO workflow_run_commands (id, run_id, kind, issued_by) SELECT command_id, id, 'start', 'bench' FROM given
"""
CREATE_PAUSED = """
WITH given AS (SELECT unnest($1::uuid[]) AS id, unnest($2::bytea[]) AS nonce),
runs AS (
    INSERT INTO workflow_runs (id, workflow_id, user_id, status, paused_reason, paused_seq, last_seq, nonce, started_at)
    SELECT id, $3, 'bench', 'paused', 'awaiting_approval', 2, 2, nonce, now() FROM given
)
INSERT INTO workflow_run_specs (run_id, snapshot) SELECT id, $4::text::json FROM given
"""


@dataclass(slots=True)
class Bench:
    """The stack under measurement."""

    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey
    gateway_port: int
    sql: asyncpg.Connection[asyncpg.Record]
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    def start_node(self, name: str, **settings: Any) -> float:
        """Start a node; answers how many seconds it took to be ready."""
        given = {
            "postgres_url": self.postgres.url,
            "redis_url": self.valkey.url,
            "gateway_url": f"http://127.0.0.1:{self.gateway_port}",
            "jwt_secret": SECRET,
            "port": 0,
            "node_name": name,
            **settings,
        }
        environment = os.environ | {f"RUNWARDEN_{key.upper()}": str(value) for key, value in given.items()}
        began = time.monotonic()
        node = subprocess.Popen(
            [sys.executable, "-m", "daemon", "serve"], env=environment, stderr=subprocess.PIPE, text=True
        )
        self.processes[name] = node
        assert node.stderr is not None
        said = []
        for line in node.stderr:
            said.append(line)
            if "node ready" in line:
                return time.monotonic() - began
        raise RuntimeError("the node did not start:\n" + "".join(said))

    def stop(self, name: str) -> None:
        node = self.processes.pop(name)
        node.terminate()
        node.wait()

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds used so far, by process; Postgres with its children."""
        found = {name: psutil.Process(one.pid) for name, one in self.processes.items()}
        found |= {"postgres": psutil.Process(self.postgres.pid), "valkey": psutil.Process(self.valkey.pid)}
        return {name: _cpu_s(one) for name, one in found.items()}

    def rss_mb(self, name: str) -> float:
        return float(psutil.Process(self.processes[name].pid).memory_info().rss) / 1e6

    async def make_runs(self, count: int, steps: int) -> list[UUID]:
        """Runs with their start commands, offered to the nodes, as the API would leave them."""
        ids = [uuid7.uuid7() for _ in range(count)]
        nonces = [secrets.token_bytes(16) for _ in ids]
        await self.sql.execute(CREATE, ids, [uuid7.uuid7() for _ in ids], nonces, uuid7.uuid7(), snapshot(steps))
        async with redis.asyncio.Redis.from_url(self.valkey.url) as connection, connection.pipeline(False) as pipe:
            for run_id in ids:
                pipe.xadd("rw:{0}:ready", {"r": run_id.hex})
            await pipe.execute()
        return ids

    async def make_paused(self, count: int) -> None:
        """Runs that wait for an approval, as a node leaves them."""
        for _ in range(0, count, 5000):
            ids = [uuid7.uuid7() for _ in range(5000)]
            nonces = [secrets.token_bytes(16) for _ in ids]
            await self.sql.execute(CREATE_PAUSED, ids, nonces, uuid7.uuid7(), snapshot(1, approval_policy="manual"))

    async def until(self, query: str, wanted: int, *, within_s: float) -> float:
        """Wait until a count is reached; answers the seconds."""
        began = time.monotonic()
        while await self.sql.fetchval(query) < wanted:
            if time.monotonic() - began > within_s:
                raise TimeoutError(query)
            await asyncio.sleep(LOOK_S)
        return time.monotonic() - began


def snapshot(steps: int, **more: Any) -> str:
    """The JSON of a spec of ``steps`` equal steps."""
    tool = {"agent_id": "bench", "tool_name": "bench__echo", "arguments": {}, "timeout_ms": 600_000, "stream": True}
    common = {"type": "tool_call", "tool_config": tool, "approval_policy": "auto", "on_error": "stop"}
    made = [{"id": f"s{number}", "name": f"Step {number}", **common, **more} for number in range(steps)]
    return orjson.dumps({"title": "bench", "description": None, "variables": {}, "steps": made}).decode()


@contextlib.asynccontextmanager
async def bench(*, hold_s: float = 0.0) -> AsyncIterator[Bench]:
    """The stack without nodes; ``hold_s``: how long every tool takes."""
    home = Path(tempfile.mkdtemp(prefix="runwarden-bench-"))
    home.chmod(0o755)
    try:
        with EmbeddedPostgres(home / "postgres") as postgres, EmbeddedValkey(home / "valkey") as valkey:
            migrate(postgres.url)
            command = [sys.executable, "-m", "tests.bench.gateway", "--hold", str(hold_s)]
            gateway = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert gateway.stdout is not None
            sql = await asyncpg.connect(postgres.url)
            opened = Bench(postgres, valkey, int(gateway.stdout.readline()), sql, {"gateway": gateway})
            try:
                yield opened
            finally:
                await sql.close()
                for process in opened.processes.values():
                    process.kill()
                    process.wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for one in (process, *process.children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            total += times.user + times.system
    return total
