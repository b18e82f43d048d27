"""Event streams: many watchers of live runs at a steady rate, without and with slow clients; and a long replay."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson
import uuid_utils.compat as uuid7

from tests.bench.load import make_runs, spec, until
from tests.bench.report import Report, median, percentile, processes_table
from tests.bench.stack import Place, Stack, token
from tests.bench.watchers import watch

GOAL_P50_MS = 20.0
GOAL_P99_MS = 150.0
GOAL_REPLAY = 20_000
EVENTS_A_STEP = 5
CONNECT_A_SECOND = 300
"""How many watchers connect in a second at the least: runs must live until all have."""
LOUD_HOLD_MS = 250
LOUD_BYTES = 100_000
"""What the run of the slow clients says a step: about 400 KB a second, more than the system's buffers hold for long."""
REPLAYS = 5
LONG = """
INSERT INTO workflow_run_pages (run_id, first_seq, events, created_at)
SELECT $2, min(g), json_agg(json_build_array(e.event_type, e.payload) ORDER BY g), max(e.created_at)
FROM generate_series(1, $3::bigint) AS g JOIN LATERAL (
    SELECT * FROM workflow_run_events WHERE run_id = $1 AND CASE
        WHEN g = $3 THEN event_type = 'run.completed'
        WHEN g < 5 THEN seq = g
        ELSE event_type = 'tool.log' END LIMIT 1
) AS e ON true GROUP BY (g - 1) / $4::bigint
"""


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=sse WATCHERS=2000 RUNS=200 RATE=4000 SECONDS=20 SLOW=50 EVENTS=10000``."""

    watchers: int = 2000
    runs: int = 200
    rate: int = 4000
    """Deliveries a second."""
    seconds: int = 20
    """Of each of the two windows."""
    slow: int = 50
    events: int = 10_000
    """Of the replay."""
    stall: float = 8.0
    """Seconds until the buffers of the slow clients are full."""
    spare: float = 8.0
    """Seconds that the runs live longer than the windows and the connecting should need."""


MINIATURE = Options(watchers=6, runs=3, rate=60, seconds=1, slow=2, events=300, stall=0.1, spare=0.3)


class Watchers:
    """The process of ``watchers``."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.bench.watchers"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    async def ask(self, plan: dict[str, Any]) -> dict[str, Any]:
        """One line in, one line out."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(orjson.dumps(plan) + b"\n")
        self.process.stdin.flush()
        line = await asyncio.to_thread(self.process.stdout.readline)
        if not line:
            raise RuntimeError("the watchers failed")
        told: dict[str, Any] = orjson.loads(line)
        return told

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """Both."""
    await live(stack, options, report)
    await replay(stack, options, report)


async def live(stack: Stack, options: Options, report: Report) -> None:
    """Watchers of live runs, in two windows."""
    each = max(1, options.watchers // options.runs)
    hold_ms = 1000 * EVENTS_A_STEP * options.runs * each // options.rate
    lives_s = 2 * options.seconds + options.stall + options.watchers / CONNECT_A_SECOND + options.spare
    of = spec(math.ceil(lives_s * 1000 / hold_ms), hold_ms=hold_ms)
    fast, slow = Watchers(), Watchers()
    try:
        async with stack.place() as place:
            node = await place.start_node(sse_close_s=0.2)
            stack.processes["watchers"] = fast.process
            runs: list[UUID] = []
            for _ in range(options.runs):  # spread over one step, so that they do not all speak at once
                runs += await make_runs(place, 1, of)
                await asyncio.sleep(hold_ms / 1000 / options.runs)
            names = [str(run_id) for run_id in runs]
            plan = {"port": node.port, "token": token(), "runs": names, "each": each, "slow": False}
            connected = (await fast.ask(plan))["connected"]
            before, windows = stack.usage(), [await _window(options.seconds)]
            loud = await make_runs(place, 1, _loud(lives_s))
            await slow.ask(plan | {"runs": [str(loud[0])], "each": options.slow, "slow": True})
            await asyncio.sleep(options.stall)
            windows.append(await _window(options.seconds))
            after = stack.usage()
            found = await fast.ask({"windows": windows})
            rows = await place.sql.fetch("SELECT id, last_seq FROM workflow_run_heads WHERE id = ANY($1)", runs)
            warnings = await place.stop_nodes()
    finally:
        fast.end()
        slow.end()
        stack.processes.pop("watchers", None)
    wrong = _wrong(found["seqs"], {str(row["id"]): row["last_seq"] for row in rows})
    table: list[list[object]] = []
    for title, one in zip(("alone", f"beside {options.slow} slow clients"), found["windows"], strict=True):
        rate = one["deliveries"] / options.seconds
        table.append([title, rate, percentile(one["ms"], 0.5), percentile(one["ms"], 0.99), max(one["ms"])])
    title = f"{options.runs * each:,} watchers of {options.runs} runs"
    report.table([title, "deliveries/s", "p50 ms", "p99 ms", "worst ms"], table)
    report.table(
        ["", ""],
        [["connected and replayed after s", connected], ["watchers that missed or repeated an event", wrong],
         ["warnings in the node's log", len(warnings)]],
    )  # fmt: skip
    report.say("\nA step stands here for a delivery:")
    deliveries = sum(one["deliveries"] for one in found["windows"])
    processes_table(report, {"live": (deliveries, after.since(before), after.rss_mb)})
    worst = [max(float(str(row[column])) for row in table) for column in (2, 3)]
    report.goal("watchers that missed or repeated an event", wrong, 0)
    report.goal("deliveries a second", min(float(str(row[1])) for row in table), 0.9 * options.rate, at_most=False)
    report.goal("commit to client p50", worst[0], GOAL_P50_MS, unit=" ms")
    report.goal("commit to client p99", worst[1], GOAL_P99_MS, unit=" ms")
    report.raw["windows"] = found["windows"]


def _loud(lives_s: float) -> dict[str, Any]:
    return spec(min(1000, math.ceil(lives_s * 1000 / LOUD_HOLD_MS)), hold_ms=LOUD_HOLD_MS, chunk_bytes=LOUD_BYTES)


async def _window(seconds: float) -> tuple[float, float]:
    began = time.time()
    await asyncio.sleep(seconds)
    return began, began + seconds


def _wrong(seqs: dict[str, list[tuple[int, bool]]], last: dict[str, int]) -> int:
    """Watchers that did not get 1 … last of their run, each once and in order."""
    return sum(not ordered or seq != last[run] for run, watchers in seqs.items() for seq, ordered in watchers)


async def replay(stack: Stack, options: Options, report: Report) -> None:
    """One client reads the whole log of a finished run."""
    async with stack.place() as place:
        node = await place.start_node(linger_s=0.1)
        long = await _long_run(place, options.events)
        rates = []
        for _ in range(REPLAYS):
            began = time.monotonic()
            watcher = await watch(node.port, str(long), token())
            rates.append(options.events / (time.monotonic() - began))
            watcher.close()
            if (watcher.last_seq, watcher.ordered) != (options.events, True):
                raise AssertionError(f"a replay ended at {watcher.last_seq} of {options.events}")
    report.table([f"replay of {options.events:,} events", "events/s"], [["median", median(rates)]])
    report.goal("replay, events a second", median(rates), GOAL_REPLAY, at_most=False)
    report.raw["replays"] = rates


async def _long_run(place: Place, events: int) -> UUID:
    """A finished run with a long log, made of a real run's events."""
    (short,) = await make_runs(place, 1, spec(1))
    await until(place, "SELECT count(*) FROM workflow_runs WHERE status = 'completed' AND owner IS NULL", 1)
    await until(place, "SELECT count(*) FROM workflow_run_events WHERE event_type = 'tool.log'", 1)
    long = uuid7.uuid7()
    (columns,) = await place.sql.fetch(
        "SELECT string_agg(column_name, ', ') FROM information_schema.columns"
        " WHERE table_name = 'workflow_runs' AND column_name NOT IN ('id', 'last_seq')"
    )
    await place.sql.execute(
        f"INSERT INTO workflow_runs (id, last_seq, {columns[0]})"
        f" SELECT $2, $3, {columns[0]} FROM workflow_runs WHERE id = $1",
        short, long, events,
    )  # fmt: skip
    await place.sql.execute(LONG, short, long, events, EVENTS_A_STEP)
    return long
