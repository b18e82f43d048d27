"""What owning and not owning cost.

1. Many passive runs, paused for approval: memory and start-up of a node beside an empty database's.
2. Many resident runs that wait for slow tools: CPU of their node while nothing happens (leases, sweep, probes).
3. The same node killed: how long another needs to take all over, and the transactions that this adds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from tests.bench.load import STUCK_S, clone, make_runs, spec, until
from tests.bench.report import Report
from tests.bench.stack import Stack

PAGE = 1000
HOLD_MS = 3_600_000
LEASED = "SELECT count(*) FROM workflow_runs WHERE owner LIKE $1"
ACKED = "SELECT count(*) FROM workflow_run_attempts WHERE state = 'acked'"
COMMITS = "SELECT sum(xact_commit)::bigint FROM pg_stat_database"


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=upkeep RESIDENTS=10000 PASSIVE=100000 IDLE=20``."""

    residents: int = 10_000
    passive: int = 100_000
    idle: float = 20.0
    """Seconds of watching."""
    settle: float = 5.0
    ttl: float = 10.0
    sweep: float = 2.0
    """Seconds that a lease lasts, and between two sweeps; the defaults of the settings."""


MINIATURE = Options(residents=10, passive=20, idle=0.3, settle=0.1, ttl=0.5, sweep=0.1)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """All three."""
    rows = [*await passive(stack, options), *await resident(stack, options)]
    report.table(["what", "measured"], rows)


async def passive(stack: Stack, options: Options) -> list[list[object]]:
    """A node's memory and start-up with nothing, and with many runs that wait for people."""
    async with stack.place() as place:
        figures = []
        for name in ("empty", "full"):
            node = await place.start_node(name, linger_s=0.1)
            await asyncio.sleep(options.settle)
            figures.append((node.ready_s, stack.usage().rss_mb[name]))
            if name == "empty":
                (waiting,) = await make_runs(place, 1, spec(1, approval_policy="manual"))
                await until(place, "SELECT count(*) FROM workflow_runs WHERE status = 'paused' AND owner IS NULL", 1)
                await place.stop_nodes()
                await clone(place, waiting, options.passive)
                await place.sql.execute("VACUUM ANALYZE")
    (empty_s, empty_mb), (full_s, full_mb) = figures
    return [
        [f"node ready, empty / {options.passive:,} paused runs", f"{empty_s:.2f} s / {full_s:.2f} s"],
        [f"RSS, empty / {options.passive:,} paused runs", f"{empty_mb:.0f} MB / {full_mb:.0f} MB"],
    ]


async def resident(stack: Stack, options: Options) -> list[list[object]]:
    """Upkeep while nothing happens, and what a takeover adds."""
    settings: dict[str, Any] = {
        "linger_s": 36_000,
        "residents": options.residents + PAGE,
        "lease_ttl_s": options.ttl,
        "sweep_period_s": options.sweep,
    }
    async with stack.place() as place:
        first = await place.start_node("first", **settings)
        for made in range(0, options.residents, PAGE):
            await make_runs(place, min(PAGE, options.residents - made), spec(1, hold_ms=HOLD_MS))
        await until(place, ACKED, options.residents, within_s=5 * STUCK_S)
        await asyncio.sleep(options.settle)
        before = stack.usage()
        await asyncio.sleep(options.idle)
        after = stack.usage()
        used, seconds = after.since(before), after.at - before.at
        told = ", ".join(f"{name} {100 * used[name] / seconds:.1f} %" for name in ("first", "valkey", "postgres"))
        await place.start_node("second", **settings)
        commits = await place.sql.fetchval(COMMITS)
        first.process.kill()
        taken_s = await until(place, LEASED, options.residents, "second.%", within_s=2 * STUCK_S)
        added = await place.sql.fetchval(COMMITS) - commits
    return [
        [f"CPU of a core, {options.residents:,} residents at rest", told.replace("first", "node")],
        [f"RSS, {options.residents:,} residents", f"{after.rss_mb['first']:.0f} MB"],
        [f"takeover of {options.residents:,} runs by another node", f"{taken_s:.1f} s after SIGKILL"],
        ["transactions a run in that time, everything included", f"{added / options.residents:.2f}"],
    ]
