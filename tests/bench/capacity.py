"""Capacity: what many waiting runs cost. Runs on slow tools, then runs that wait for a person and are approved."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.bench.caller import Entry, call_apart
from tests.bench.load import STUCK_S, clone, make_runs, spec, until
from tests.bench.report import Report, percentile, processes_table
from tests.bench.stack import Stack, token

GOAL_RSS_MB = 400.0
GOAL_CORE_PERCENT = 5.0
GOAL_APPROVE_MS = 100.0
PAGE = 1000
LOOK_S = 0.1
WAITING = "SELECT count(*) FROM workflow_run_attempts WHERE state IN ('intent', 'sent', 'acked')"
DONE = "SELECT count(*) FROM workflow_runs WHERE status = 'completed'"


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=capacity RUNS=10000 HOLD=60 PAUSED=100000 RATE=100 SECONDS=10``."""

    runs: int = 10_000
    hold: float = 60.0
    """Seconds that each tool takes."""
    settle: float = 5.0
    """Seconds between the last call and the look at what waiting costs."""
    paused: int = 100_000
    rate: int = 100
    """Approvals a second."""
    seconds: int = 10


MINIATURE = Options(runs=20, hold=1.0, settle=0.1, paused=30, rate=10, seconds=1)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """Both."""
    await slow_tools(stack, options, report)
    await approvals(stack, options, report)


async def slow_tools(stack: Stack, options: Options, report: Report) -> None:
    """All are called, all wait, all complete, none is called twice; CPU while they wait, peak memory."""
    clock = asyncio.get_running_loop().time
    async with stack.place() as place:
        await place.start_node()
        began, of = clock(), spec(1, hold_ms=round(options.hold * 1000))
        for made in range(0, options.runs, PAGE):
            await make_runs(place, min(PAGE, options.runs - made), of)
        while (state := await stack.state())["calls"] < options.runs:
            if clock() - began > STUCK_S + options.hold:
                raise TimeoutError(f"not every tool was called: {state}")
            await asyncio.sleep(LOOK_S)
        called_s = clock() - began
        await asyncio.sleep(options.settle)
        before = stack.usage()
        half_s = max(0.2, (options.hold - called_s - options.settle) * 0.45)
        await asyncio.sleep(half_s)
        middle = stack.usage()
        await asyncio.sleep(half_s)
        after = stack.usage()
        disturbed = (await stack.state())["said"]
        await until(place, DONE, options.runs, within_s=options.hold + STUCK_S)
        whole_s, final = clock() - began, stack.usage()
        state = await stack.state()
        warnings = await place.stop_nodes()
    seconds = after.at - before.at
    shares = {name: 100 * used / seconds for name, used in after.since(before).items()}
    title = f"{options.runs:,} runs on tools of {options.hold:g} s"
    report.table(
        [title, ""],
        [
            ["every tool called after s", called_s],
            ["waiting was watched for s", seconds],
            ["results said in that time", disturbed],
            *[[f"while waiting, % of a core: {name}", share] for name, share in shares.items()],
            ["the node's in the first half, %", 100 * middle.since(before)["node"] / (middle.at - before.at)],
            ["the node's in the second half, %", 100 * after.since(middle)["node"] / (after.at - middle.at)],
            ["all completed after s", whole_s],
            ["calls made twice", state["twice"]],
            ["peak RSS of the node, MB", final.rss_mb["node"]],
            ["warnings in the node's log", len(warnings)],
        ],
    )
    report.goal("slow tools: RSS of the node", final.rss_mb["node"], GOAL_RSS_MB, unit=" MB")
    report.goal("slow tools: CPU of the node while waiting", shares["node"], GOAL_CORE_PERCENT, unit=" %")
    report.goal("slow tools: calls made twice", state["twice"], 0)


async def approvals(stack: Stack, options: Options, report: Report) -> None:
    """Many paused runs, some of them approved over HTTP at a steady rate."""
    async with stack.place() as place:
        empty = await place.start_node("empty", linger_s=0.1)
        await asyncio.sleep(options.settle)
        alone = stack.usage().rss_mb["empty"]
        (waiting,) = await make_runs(place, 1, spec(1, approval_policy="manual"))
        query = "SELECT count(*) FROM workflow_runs WHERE status = 'paused' AND owner IS NULL"
        await until(place, query, 1)
        await place.stop_nodes()
        made = await clone(place, waiting, options.paused)
        await place.sql.execute("VACUUM ANALYZE")
        node = await place.start_node()
        await asyncio.sleep(options.settle)
        resting, before = stack.usage().rss_mb["node"], stack.usage()
        count = min(options.rate * options.seconds, len(made))
        step = max(1, len(made) // count)
        plan: list[Entry] = [
            (n / options.rate, "approve", "POST", f"/v1/workflow-runs/{made[n * step]}/approve", {"step_id": "s0"})
            for n in range(count)
        ]
        found = (await call_apart(node.port, token(), plan))["approve"]
        await until(place, DONE, count)
        after = stack.usage()
        state, warnings = await stack.state(), await place.stop_nodes()
    p99, answers = percentile(found["ms"], 0.99), found["statuses"]
    report.table(
        [f"{options.paused:,} runs paused, {options.rate} approvals/s", ""],
        [
            ["node ready, empty / full, s", f"{empty.ready_s:.2f} / {node.ready_s:.2f}"],
            ["RSS of the node, empty / full, MB", f"{alone:.0f} / {resting:.0f}"],
            ["approval answered, p50 ms", percentile(found["ms"], 0.5)],
            ["approval answered, p99 ms", p99],
            ["answers", ", ".join(f"{number:,} × {status}" for status, number in answers.items())],
            ["tools called, of which twice", f"{state['calls']:,}, {state['twice']}"],
            ["warnings in the node's log", len(warnings)],
        ],
    )
    report.say("\nA step stands here for an approval and what follows from it:")
    processes_table(report, {"approvals": (count, after.since(before), after.rss_mb)})
    report.goal("approvals: p99", p99, GOAL_APPROVE_MS, unit=" ms")
    report.goal("approvals: not answered 200", count - answers.get("200", 0), 0)
    report.goal("approvals: RSS full − empty", resting - alone, 10, unit=" MB")
    report.raw["approvals_ms"] = found["ms"]
