"""Latency: one run alone, the gap between the RESULT of a step and the invoke of the next, beside the floors'.

Each piece takes a few runs one after another and leaves out the first, in which a process and its session of Postgres
do everything for the first time: nodes live for weeks. Pieces are short and many, for the machine's disk and CPU change
their speed within seconds; how the disk is doing is measured between them (RESULTS.md says why).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.bench.disk import flushes
from tests.bench.load import Carried
from tests.bench.report import Report, median, percentile
from tests.bench.stack import Stack
from tests.bench.throughput import FLOORS, ONE, engine, floor, summarise

GOAL_P50 = 2.0
GOAL_P99 = 4.0
PAUSES_MS = (0.0, 0.1, 0.2, 0.4)
FLUSHES = 50


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=latency STEPS=200 RUNS=3 REPEATS=9``."""

    steps: int = 200
    runs: int = 3
    """One after another; the first is not looked at."""
    repeats: int = 9


MINIATURE = Options(steps=4, runs=2, repeats=1)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """One run at a time on each engine, in turn."""
    found: dict[str, list[Carried]] = {}
    disk: dict[float, list[float]] = {pause_ms: [] for pause_ms in PAUSES_MS}
    size = {"runs": options.runs, "steps": options.steps, "inflight": 1}
    for _ in range(options.repeats):
        for pause_ms, taken in disk.items():
            taken += flushes(stack.home, pause_s=pause_ms / 1000, count=FLUSHES)
        for title in (*FLOORS, ONE):
            async with stack.place() as place:
                if title in FLOORS:
                    carried = await floor(place, FLOORS[title], **size)
                else:
                    carried = await engine(place, nodes=1, **size)
            gaps = carried.gaps_ms[options.steps - 1 :]
            found.setdefault(title, []).append(replace(carried, gaps_ms=gaps))
    summarise(report, found)
    pauses = [f"after {pause_ms} ms" for pause_ms in disk]
    p50s = [percentile(taken, 0.5) for taken in disk.values()]
    report.table(["a flush of the disk", *pauses], [["p50 ms", *p50s]])
    report.raw["flush_p50_ms"] = dict(zip(pauses, p50s, strict=True))
    ours = median([percentile(one.gaps_ms, 0.5) for one in found[ONE]])
    theirs = median([percentile(one.gaps_ms, 0.5) for one in found["floor"]])
    worst = median([percentile(one.gaps_ms, 0.99) for one in found[ONE]])
    report.goal("gap p50 / the floor's", ours / theirs, GOAL_P50)
    report.goal("gap p99 / own p50", worst / ours, GOAL_P99)
