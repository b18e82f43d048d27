"""Latency: one run alone, the gap between the RESULT of a step and the invoke of the next, beside the floors'."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bench.load import Carried
from tests.bench.report import Report, median, percentile
from tests.bench.stack import Stack
from tests.bench.throughput import FLOORS, ONE, engine, floor, summarise

GOAL_P50 = 2.0
GOAL_P99 = 4.0


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=latency STEPS=200 REPEATS=3``."""

    steps: int = 200
    repeats: int = 3


MINIATURE = Options(steps=4, repeats=1)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """One run at a time on each engine, in turn."""
    found: dict[str, list[Carried]] = {}
    for _ in range(options.repeats):
        for title in (*FLOORS, ONE):
            async with stack.place() as place:
                if title in FLOORS:
                    carried = await floor(place, FLOORS[title], runs=1, steps=options.steps, inflight=1)
                else:
                    carried = await engine(place, nodes=1, runs=1, steps=options.steps, inflight=1)
            found.setdefault(title, []).append(carried)
    summarise(report, found)
    ours = median([percentile(one.gaps_ms, 0.5) for one in found[ONE]])
    theirs = median([percentile(one.gaps_ms, 0.5) for one in found["floor"]])
    worst = median([percentile(one.gaps_ms, 0.99) for one in found[ONE]])
    report.goal("gap p50 / the floor's", ours / theirs, GOAL_P50)
    report.goal("gap p99 / own p50", worst / ours, GOAL_P99)
