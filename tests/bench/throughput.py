"""Throughput: many runs at once, one node and two, beside the floors of the same call, interleaved and repeated."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson

from tests.bench.load import Carried, carry, spec
from tests.bench.report import Report, median, percentile, processes_table
from tests.bench.stack import Place, Stack

GOAL_RATIO = 0.4
GOAL_TWO_NODES = 0.9
FLOORS = {"floor": "aiohttp", "thin floor": "thin"}
ONE, TWO = "Runwarden", "Runwarden, two nodes"


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=throughput RUNS=100 STEPS=10 INFLIGHT=50 REPEATS=1``."""

    runs: int = 1000
    steps: int = 10
    inflight: int = 200
    repeats: int = 3


MINIATURE = Options(runs=4, steps=2, inflight=3, repeats=1)


async def floor(place: Place, client: str, *, runs: int, steps: int, inflight: int) -> Carried:
    """A floor loop as a process of its own."""
    stack = place.stack
    await stack.reset()
    sizes = {"gateway": stack.gateway_port, "runs": runs, "steps": steps, "inflight": inflight}
    command = [sys.executable, "-m", "tests.bench.floor", "--client", client, "--postgres", place.url]
    for name, value in sizes.items():
        command += [f"--{name}", str(value)]
    loop = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.processes["node"] = loop
    assert loop.stdin is not None
    assert loop.stdout is not None
    try:
        if await asyncio.to_thread(loop.stdout.readline) != b"ready\n":
            raise RuntimeError("the floor did not start")
        before = stack.usage()
        loop.stdin.write(b"go\n")
        loop.stdin.flush()
        seconds = orjson.loads(await asyncio.to_thread(loop.stdout.readline))["seconds"]
        after = stack.usage()
    finally:
        loop.stdin.close()
        await asyncio.to_thread(loop.wait)
        loop.stdout.close()
        del stack.processes["node"]
    counted = await stack.state(gaps=True)
    written = await place.sql.fetchval("SELECT count(*) FROM bench_records")
    if written != runs * steps or counted["calls"] != runs * steps:
        raise AssertionError(f"the floor made {counted['calls']} calls and wrote {written} of {runs * steps} records")
    return Carried(runs * steps, seconds, counted["gaps_ms"], after.since(before), after.rss_mb)


async def engine(place: Place, *, nodes: int, runs: int, steps: int, inflight: int) -> Carried:
    """Runwarden on so many nodes, warmed up by a few runs."""
    for number in range(nodes):
        await place.start_node(f"node-{number + 1}" if nodes > 1 else "node")
    await carry(place, spec(2), runs=4 * nodes, inflight=4 * nodes)
    return await carry(place, spec(steps), runs=runs, inflight=inflight)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """Floor, thin floor, one node, two nodes; again and again; medians and ratios."""
    found: dict[str, list[Carried]] = {}
    size = {"runs": options.runs, "steps": options.steps, "inflight": options.inflight}
    for repeat in range(options.repeats):
        for title in (*FLOORS, ONE, TWO):
            async with stack.place() as place:
                if title in FLOORS:
                    carried = await floor(place, FLOORS[title], **size)
                else:
                    carried = await engine(place, nodes=1 if title == ONE else 2, **size)
                    warnings = await place.stop_nodes()
                    for line in warnings[:5]:
                        report.say(f"  {title}: {line}")
            found.setdefault(title, []).append(carried)
            report.say(f"  {repeat + 1}/{options.repeats} {title}: {carried.rate:,.0f} steps/s")
    summarise(report, found)
    rates = {title: median([one.rate for one in carried]) for title, carried in found.items()}
    report.goal("throughput / floor", rates[ONE] / rates["floor"], GOAL_RATIO, at_most=False)
    report.goal("two nodes / one node", rates[TWO] / rates[ONE], GOAL_TWO_NODES, at_most=False)


def summarise(report: Report, found: dict[str, Sequence[Carried]] | dict[str, list[Carried]]) -> None:
    """The tables of rates, gaps and processes."""
    base = median([one.rate for one in found["floor"]])
    rows: list[list[object]] = []
    for title, carried in found.items():
        rate = median([one.rate for one in carried])
        gaps = [(percentile(one.gaps_ms, 0.5), percentile(one.gaps_ms, 0.99)) for one in carried]
        spread = f"{min(one.rate for one in carried):,.0f} – {max(one.rate for one in carried):,.0f}"
        rows.append([title, rate, spread, rate / base, median([g[0] for g in gaps]), median([g[1] for g in gaps])])
    report.table(["engine", "steps/s", "least – most", "of the floor", "gap p50 ms", "gap p99 ms"], rows)
    pieces = {}
    for title, carried in found.items():
        names = list(dict.fromkeys(name for one in carried for name in one.cpu_s))
        cpu = {name: median([one.cpu_s[name] for one in carried]) for name in names}
        rss = {name: max(one.rss_mb.get(name, 0.0) for one in carried) for name in names}
        pieces[title] = (carried[0].steps, cpu, rss)
    processes_table(report, pieces)
    report.raw["pieces"] = {
        title: [
            {**{k: v for k, v in asdict(one).items() if k != "gaps_ms"}, "rate": one.rate, "gaps": len(one.gaps_ms)}
            for one in carried
        ]
        for title, carried in found.items()
    }
