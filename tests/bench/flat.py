"""Flat costs: a step costs the same in a long run as in a short one, and in full tables as in empty ones.

1. Rows, statements and Redis commands of a further step, at 10, 100 and 1,000 steps a run: counted by Postgres and
   Redis, runs one after another on one node. What a run costs by itself (claim, start, end) is taken off by the count
   of runs of one step: cost(N) − cost(1), divided by N − 1. The time between two steps is taken apart from that, of the
   lengths in turns.
2. Steps a second on one node over empty tables and over full ones, in turn; full: finished runs cloned from real ones.
3. The queries of lists and the inbox over the full tables: their time, and whether their plans read whole tables.
"""

from __future__ import annotations

import gc
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from uuid import UUID

import orjson
from asyncpg.connection import LoggedQuery

from daemon.auth.caller import Caller
from daemon.store.approvals import Approvals
from daemon.store.matching import Filter
from daemon.store.pool import open_pool
from daemon.store.runs import Runs
from daemon.store.tail import CHECKPOINT_EVERY
from tests.bench.load import TABLES, Carried, carry, clone, make_runs, spec, until
from tests.bench.report import Report, median, percentile
from tests.bench.stack import AGENT, DRIVER, USER, Place, Stack

GOAL_BYTES = 0.10
GOAL_TIME = 0.25
GOAL_QUERY_MS = 10.0
CLONED_STEPS = 2
QUERIES = 50
LEAST_STEPS = 10
TRIES = 5
ROUNDS = 2
"""In each repeat, of the gaps in turns."""
COUNTS = True
"""The stack's Postgres counts statements."""
STILL: dict[str, Any] = {
    "sweep_period_s": 600,
    "lease_ttl_s": 600,
    "stale_after_s": 600,
    "log_hold_s": 5,
    "linger_s": 0.02,
    "postgres_pool": 2,
}
"""Settings under which a node does nothing by the clock but its probes, and opens no connection after its first run, so
that what is counted belongs to the runs."""
PROBE = re.compile(r"SELECT (\$1|1)$")
BY_THE_CLOCK_HZ = 3
BY_THE_CLOCK = frozenset({"redis: ping", "redis: info", "redis: config|resetstat"})
STATEMENTS = """
SELECT regexp_replace(query, '\\s+', ' ', 'g') AS query, sum(calls)::bigint AS calls, sum(wal_bytes)::bigint AS wal
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND userid <> $1::text::regrole GROUP BY 1
"""
APPENDED = """
SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND userid <> $1::text::regrole
    AND query ~ 'INSERT INTO workflow_run_pages .*FOR KEY SHARE'
"""
ROWS = """
SELECT regexp_replace(relname, '_(\\d{4}_\\d\\d|default)$', '') AS name, sum(n_tup_ins)::bigint AS inserted,
    sum(n_tup_upd)::bigint AS updated, sum(pg_relation_size(relid) + pg_indexes_size(relid))::bigint AS size
FROM pg_stat_user_tables WHERE relname LIKE 'workflow_run%' GROUP BY 1
"""
EVERYTHING = ("workflow_runs", "workflow_run_agents", *(f"workflow_run_{table}" for table in TABLES))


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=flat STEPS=1000 RUNS=1000 FINISHED=100000 REPEATS=3``."""

    steps: int = 1000
    """The longest run; the others have a tenth and a hundredth of it."""
    finished: int = 100_000
    """Finished runs of 2 steps (12 events) in the full tables."""
    runs: int = 500
    inflight: int = 200
    repeats: int = 3


MINIATURE = Options(steps=28, finished=50, runs=4, inflight=4, repeats=1)


@dataclass(slots=True)
class Cost:
    """What a run of so many steps costs, on average of equal ones; ``counts`` are exact."""

    counts: dict[str, float]
    sizes: dict[str, float]
    seconds: float


def a_step(whole: Mapping[str, float], base: Mapping[str, float], steps: int) -> dict[str, float]:
    """What a further step costs: ``whole`` of a run of so many steps, ``base`` of a run of one."""
    names = sorted(whole.keys() | base.keys())
    return {name: round((whole.get(name, 0) - base.get(name, 0)) / (steps - 1), 6) for name in names}


def whole(value: float, steps: int, seconds: float) -> float:
    """A count of a step as the whole number that it is, or of ninths where only a checkpoint does it, if what remains
    is no cost of steps: less than one a run (a connection that was opened) and ``BY_THE_CLOCK_HZ`` a second of the run
    (leases, roles and beacons renewed, probes).
    """
    nearest = round(value * CHECKPOINT_EVERY) / CHECKPOINT_EVERY
    rest = abs(value - nearest) * (steps - 1)
    return nearest if rest < 1 + BY_THE_CLOCK_HZ * seconds else value


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """All three."""
    await costs_by_length(stack, options, report)
    await fullness(stack, options, report)


async def costs_by_length(stack: Stack, options: Options, report: Report) -> None:
    """Runs of one, few, more and many steps."""
    lengths = sorted({max(LEAST_STEPS, options.steps // share) for share in (100, 10, 1)})
    base = await cost(stack, 1, runs=max(2, options.steps // 5))
    costs = {steps: await cost(stack, steps, runs=max(1, options.steps // steps)) for steps in lengths}
    counts = {steps: a_step(one.counts, base.counts, steps) for steps, one in costs.items()}
    sizes = {steps: a_step(one.sizes, base.sizes, steps) for steps, one in costs.items()}
    headings = [f"{steps:,} steps" for steps in costs]
    rows: list[list[object]] = []
    uneven = 0
    for name in sorted({name for one in counts.values() for name in one}):
        values = [whole(one.get(name, 0.0), steps, costs[steps].seconds) for steps, one in counts.items()]
        uneven += len(set(values)) > 1
        if any(values):
            rows.append([name, *values, "" if len(set(values)) == 1 else "differs"])
    report.table(["a further step costs", *headings, ""], rows)
    rows, spreads = [], {}
    for name in sizes[lengths[-1]]:
        values = [one[name] for one in sizes.values()]
        spreads[name] = max(values) / min(values) - 1 if min(values) > 0 else math.inf
        rows.append([name, *values, f"{100 * spreads[name]:.1f} %"])
    gaps = await gaps_in_turns(stack, lengths, rounds=ROUNDS * options.repeats)
    rows.append(["gap p50 ms", *gaps, f"{100 * (max(gaps) / min(gaps) - 1):.1f} %"])
    report.table(["a further step takes", *headings, "spread"], rows)
    report.goal("counts that differ with the length of a run", uneven, 0)
    report.goal("bytes, most over least − 1", max(spreads.values()), GOAL_BYTES)
    report.goal("times, most over least − 1", max(gaps) / min(gaps) - 1, GOAL_TIME)
    report.raw["lengths"] = {"counts": counts, "sizes": sizes, "gaps_ms": gaps}


async def gaps_in_turns(stack: Stack, lengths: Sequence[int], *, rounds: int) -> list[float]:
    """The median gap (ms) of runs of each length, on one node, in turns: a machine is half as quick a second later.

    A turn is as many steps of each length, and its runs follow each other at once: after a pause all that is here wakes
    up with cold caches, so that with pauses the floor's gap too is a third longer in short runs than in long ones.
    """
    found: dict[int, list[float]] = {steps: [] for steps in lengths}
    async with stack.place() as place:
        await place.start_node(**STILL)
        await _carry_one(place, lengths[-1])  # connections, prepared statements
        for number in range(rounds):
            for steps in lengths if number % 2 else reversed(lengths):
                carried = await carry(place, spec(steps), runs=lengths[-1] // steps, inflight=1)
                found[steps] += carried.gaps_ms
        await place.stop_nodes()
    return [percentile(gaps, 0.5) for gaps in found.values()]


async def cost(stack: Stack, steps: int, *, runs: int) -> Cost:
    """Carry runs one after another, each let go before the next, and read what Postgres and Redis counted.

    Where the machine stood still for a moment, a run was not quick, and wrote its rows more often: then again.
    """
    further = steps - 1
    appended = (runs + 1) * (further - further // CHECKPOINT_EVERY)
    for _ in range(TRIES):
        found, counted = await _cost(stack, steps, runs=runs)
        if counted == appended:
            break
    return found


async def _cost(stack: Stack, steps: int, *, runs: int) -> tuple[Cost, int]:
    """And how many commits were appended."""
    async with stack.place() as place:
        await place.sql.execute("CREATE EXTENSION pg_stat_statements")
        stood = await _rows(place)
        await place.start_node(**STILL)
        await place.sql.execute("CHECKPOINT")
        await _carry_one(place, steps)  # connections, prepared statements, first pages; its rows are counted
        appended = await place.sql.fetchval(APPENDED, DRIVER)
        await place.sql.execute("SELECT pg_stat_statements_reset()")
        await stack.redis.config_resetstat()
        carried: list[Carried] = []
        moved = [await _moved(stack)]
        for _ in range(runs):
            carried.append(await _carry_one(place, steps))
            moved.append(await _moved(stack))
        appended += await place.sql.fetchval(APPENDED, DRIVER)
        counts, wal = await _commands(stack), 0
        for row in await place.sql.fetch(STATEMENTS, DRIVER):
            if not PROBE.match(row["query"]):
                name = f"statement: {row['query'].strip()[:48]}"
                counts[name] = counts.get(name, 0) + row["calls"]
                wal += row["wal"]
        counts = {name: value / runs for name, value in counts.items()}
        # Medians: in a run of ten a lease is renewed, or a hint has the frames because nobody has answered the last.
        sizes = {name: median([after[name] - before[name] for before, after in pairwise(moved)]) for name in moved[0]}
        sizes["WAL"] = wal / runs
        await place.stop_nodes()  # its sessions end, and have reported what they did
        await place.sql.execute("SELECT pg_stat_force_next_flush()")
        for name, value in (await _rows(place)).items():
            (sizes if name == "tables" else counts)[name] = (value - stood.get(name, 0)) / (runs + 1)
    return Cost(counts, sizes, median([one.seconds for one in carried])), appended


async def _carry_one(place: Place, steps: int) -> Carried:
    carried = await carry(place, spec(steps), runs=1, inflight=1)
    await until(place, "SELECT 1 - count(*) FROM workflow_runs WHERE owner IS NOT NULL", 1)
    return carried


async def _commands(stack: Stack) -> dict[str, float]:
    """Commands that Redis executed since the last reset."""
    told = await stack.redis.info("commandstats")
    counts = {f"redis: {name.removeprefix('cmdstat_')}": float(one["calls"]) for name, one in told.items()}
    return {name: value for name, value in counts.items() if name not in BY_THE_CLOCK}


async def _moved(stack: Stack) -> dict[str, float]:
    """Bytes that went to Redis and came from it, so far."""
    told = await stack.redis.info("stats")
    return {f"redis {name}": float(told[f"total_net_{name}_bytes"]) for name in ("input", "output")}


async def _rows(place: Place) -> dict[str, float]:
    """Rows written so far of each table, and the bytes of all with their indexes."""
    found: dict[str, float] = {}
    for row in await place.sql.fetch(ROWS):
        found[f"inserted: {row['name']}"] = float(row["inserted"])
        found[f"updated: {row['name']}"] = float(row["updated"])
        found["tables"] = found.get("tables", 0.0) + float(row["size"])
    return found


async def fullness(stack: Stack, options: Options, report: Report) -> None:
    """Steps a second over empty and over full tables, in turn; then the queries over the full ones."""
    async with stack.place() as empty, stack.place() as full:
        events = await fill(full, options.finished)
        rates: dict[str, list[float]] = {"empty": [], "full": []}
        for _ in range(options.repeats):
            for title, place in (("empty", empty), ("full", full)):
                await place.start_node()
                await carry(place, spec(2), runs=4, inflight=4)
                carried = await carry(place, spec(10), runs=options.runs, inflight=options.inflight)
                await place.stop_nodes()
                rates[title].append(carried.rate)
                if title == "empty":  # as empty as before
                    await place.sql.execute(f"TRUNCATE {', '.join(EVERYTHING)}")
        ratio = median(rates["full"]) / median(rates["empty"])
        title = f"full: {options.finished:,} finished runs, {events:,} events"
        report.table(["tables", "steps/s"], [["empty", median(rates["empty"])], [title, median(rates["full"])]])
        report.goal("steps/s over full tables / empty", ratio, 1 - GOAL_TIME, at_most=False)
        report.raw["fullness"] = rates
        await queries(full, report)


async def fill(place: Place, finished: int) -> int:
    """Finished runs, as many that wait for approval as a hundredth of them; answers the number of events."""
    await place.start_node(linger_s=0.1)
    (ended,) = await make_runs(place, 1, spec(2))
    (waiting,) = await make_runs(place, 1, spec(2, approval_policy="manual"))
    await until(place, "SELECT count(*) FROM workflow_runs WHERE status <> 'running' AND owner IS NULL", 2)
    await place.stop_nodes()
    await clone(place, ended, finished)
    await clone(place, waiting, max(1, finished // 100))
    await place.sql.execute("VACUUM ANALYZE")
    events: int = await place.sql.fetchval("SELECT count(*) FROM workflow_run_events")
    return events


def whole_tables(plan: Mapping[str, Any]) -> Iterator[str]:
    """Tables of ours that a plan did read from end to end; a partition that was pruned as it ran was not read."""
    if plan["Node Type"] == "Seq Scan" and plan["Actual Loops"] and plan["Relation Name"].startswith("workflow_run"):
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from whole_tables(part)


def asked_for(workflow_id: UUID) -> dict[str, Filter | Caller]:
    """Lists of runs, and whose inbox, by their titles: of what is often and what is rare, and of what is not there."""
    return {
        "newest runs": Filter(),
        "newest finished": Filter(statuses=["completed"]),
        "inbox: waiting for approval": Filter(statuses=["paused"], paused_reasons=["awaiting_approval"]),
        "inbox of an agent": Filter(statuses=["paused"], paused_reasons=["awaiting_approval"], agent_id=AGENT),
        "failed": Filter(statuses=["failed"]),
        "failed or canceled": Filter(statuses=["failed", "canceled"]),
        "finished, of two statuses": Filter(statuses=["completed", "failed"]),
        "waiting for what is not there": Filter(statuses=["paused"], paused_reasons=["step_failed", "held"]),
        "of a workflow": Filter(workflow_id=workflow_id),
        "of a workflow, failed": Filter(workflow_id=workflow_id, statuses=["failed"]),
        "of an agent": Filter(agent_id=AGENT),
        "of an agent, failed": Filter(agent_id=AGENT, statuses=["failed"]),
        "of an agent that nobody called": Filter(agent_id="nobody"),
        "of that agent, finished": Filter(agent_id="nobody", statuses=["completed"]),
        "approvals": Caller(USER),
        "approvals, of who is asked nothing": Caller("nobody"),
    }


async def queries(place: Place, report: Report) -> None:
    """Lists of a user's runs and the inbox, as the API asks for them: time and plan."""
    asked = asked_for(await place.sql.fetchval("SELECT workflow_id FROM workflow_runs WHERE status = 'paused' LIMIT 1"))
    pool = await open_pool(place.url, size=1, patience_s=10)
    runs, approvals, rows, worst, scans = Runs(pool), Approvals(pool), [], 0.0, 0

    async def page(wanted: Filter | Caller) -> int:
        if isinstance(wanted, Caller):
            return len((await approvals.waiting_for(wanted, after=None, limit=50)).requests)
        return len(await runs.matching(wanted, user_id=USER, limit=50))

    said: list[LoggedQuery] = []
    gc.collect()
    gc.freeze()  # else our own collector takes 23 ms of some query

    def note(record: LoggedQuery) -> None:
        if "FROM workflow_run" in record.query:
            said.append(record)

    try:
        for title, wanted in asked.items():
            taken: list[float] = []
            found = await page(wanted)  # what its types are; a connection asks that once
            for _ in range(QUERIES):
                began = time.perf_counter()
                await page(wanted)
                taken.append((time.perf_counter() - began) * 1000)
            async with pool.acquire() as connection:
                said.clear()
                connection.add_query_logger(note)
            await page(wanted)
            explain = f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {said[0].query}"
            (explained,) = orjson.loads(await place.sql.fetchval(explain, *(said[0].args or ())))
            whole = list(whole_tables(explained["Plan"]))
            p50, p99 = percentile(taken, 0.5), percentile(taken, 0.99)
            worst, scans = max(worst, p99), scans + len(whole)
            rows.append([title, found, p50, p99, ", ".join(whole) or "none"])
    finally:
        await pool.close()
    report.table(["query, a page of 50", "rows", "p50 ms", "p99 ms", "tables read whole"], rows)
    report.goal("lists and inbox, worst p99", worst, GOAL_QUERY_MS, unit=" ms")
    report.goal("lists and inbox that read a whole table", scans, 0)
