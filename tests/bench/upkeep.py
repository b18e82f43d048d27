"""What owning and not owning cost: ``python -m tests.bench.upkeep`` (``make bench WHAT=upkeep``).

1. 10,000 resident runs that wait for slow tools: CPU of their node while nothing happens (leases, sweep, probes).
2. The same node killed: statements per run that the takeover adds, by ``pg_stat_database`` and ``pg_stat_statements``.
3. 100,000 passive runs, paused for approval: memory and start-up of a node beside an empty database's.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys

import uvloop

from tests.bench.bench import Bench, bench

RESIDENTS = 10_000
PASSIVE = 100_000
IDLE_S = 20.0
SETTLE_S = 5.0
LEASED = "SELECT count(*) FROM workflow_runs WHERE owner LIKE '{}.%'"
ACKED = "SELECT count(*) FROM workflow_run_attempts WHERE state = 'acked'"


async def main() -> None:
    """Print the figures as a Markdown table."""
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    print("| what | measured |\n|---|---|")
    async with bench() as stack:
        await passive(stack)
    async with bench(hold_s=3600) as stack:
        await resident(stack)


async def passive(stack: Bench) -> None:
    """A node's memory and start-up with nothing, and with many runs that wait for people."""
    figures = []
    for count in (0, PASSIVE):
        await stack.make_paused(count)
        ready_s = stack.start_node("node")
        await asyncio.sleep(SETTLE_S)
        figures.append((ready_s, stack.rss_mb("node")))
        stack.stop("node")
    (empty_s, empty_mb), (full_s, full_mb) = figures
    print(f"| node ready, empty / {PASSIVE:,} paused runs | {empty_s:.2f} s / {full_s:.2f} s |")
    print(f"| RSS, empty / {PASSIVE:,} paused runs | {empty_mb:.0f} MB / {full_mb:.0f} MB |")


async def resident(stack: Bench) -> None:
    """Upkeep while nothing happens, and what a takeover adds."""
    stack.start_node("first", linger_s=36_000, residents=RESIDENTS + 1000)
    for _ in range(0, RESIDENTS, 1000):
        await stack.make_runs(1000, 1)
    await stack.until(ACKED, RESIDENTS, within_s=300)
    await asyncio.sleep(SETTLE_S)
    before = stack.cpu_s()
    await asyncio.sleep(IDLE_S)
    after = stack.cpu_s()
    shares = {name: 100 * (after[name] - before[name]) / IDLE_S for name in ("first", "valkey", "postgres")}
    told = ", ".join(f"{name} {share:.1f} %" for name, share in shares.items())
    print(f"| CPU of a core, {RESIDENTS:,} residents at rest | {told.replace('first', 'node')} |")
    print(f"| RSS, {RESIDENTS:,} residents | {stack.rss_mb('first'):.0f} MB |")
    stack.start_node("second", linger_s=36_000, residents=RESIDENTS + 1000)
    statements = await stack.sql.fetchval("SELECT sum(xact_commit) FROM pg_stat_database")
    stack.processes.pop("first").kill()
    seconds = await stack.until(LEASED.format("second"), RESIDENTS, within_s=120)
    added = await stack.sql.fetchval("SELECT sum(xact_commit) FROM pg_stat_database") - statements
    print(f"| takeover of {RESIDENTS:,} runs by another node | {seconds:.1f} s after SIGKILL |")
    print(f"| transactions a run in that time, everything included | {added / RESIDENTS:.2f} |")


if __name__ == "__main__":
    uvloop.run(main())
    sys.exit(0)
