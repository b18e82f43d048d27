"""The API under load: runs created whose first step waits for a person, and runs read, beside steps being carried.

Three kinds of run are read, and told apart: such as are created here (of two steps), runs of ten steps that move, and
the long ones that carry the steps beside, of which one answer has up to 230 kB. The goal is for the first two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from tests.bench.caller import Entry, call_apart
from tests.bench.load import make_runs, spec, until
from tests.bench.report import Report, percentile, processes_table
from tests.bench.stack import Node, Place, Stack, token
from tests.bench.thin import Client, request

GOAL_CREATE_MS = 100.0
GOAL_GET_MS = 25.0
HOLD_MS = 100
TICK_MS, GAP_MS = 5, 10
"""How much later than asked for the bench Gateway says a RESULT, and how long a run's gap is under this load, about."""
MOST_STEPS = 1000
CREATED, MOVING = 100, 20
"""Runs that are read."""
RUNS = "/v1/workflow-runs"


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=api SECONDS=30 CREATIONS=300 READS=100 LONG=10 RATE=300``: each a second."""

    seconds: int = 30
    creations: int = 300
    reads: int = 100
    """Of created and of moving runs, by turns."""
    long: int = 10
    """Reads of long runs."""
    rate: int = 300
    """Steps carried beside."""


MINIATURE = Options(seconds=1, creations=10, reads=10, long=2, rate=20)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """One node, everything at once."""
    async with stack.place() as place:
        node = await place.start_node()
        workflow, carried = await make_workflow(node), await _steady(place, options)
        read = [await _created(node, workflow), await _moving(place, options)]
        plan = _plan(options, workflow, read, carried)
        before, state = stack.usage(), await stack.state()
        found = await call_apart(node.port, token(), plan)
        after, said_since = stack.usage(), (await stack.state())["said"] - state["said"]
        rate = said_since / (after.at - before.at)
        query = "SELECT count(*) FROM workflow_runs WHERE workflow_id = $1::text::uuid AND status = 'paused'"
        await until(place, query, found["create"]["statuses"].get("200", 0) + len(read[0]), workflow)
        warnings = await place.stop_nodes()
    rows: list[list[object]] = []
    for kind, one in found.items():
        p50, p99 = percentile(one["ms"], 0.5), percentile(one["ms"], 0.99)
        answers = ", ".join(f"{count:,} × {status}" for status, count in one["statuses"].items())
        rows.append([kind, p50, p99, max(one["ms"]), answers])
    report.table(["request", "p50 ms", "p99 ms", "worst ms", "answers"], rows)
    report.table(["beside", "a second"], [["steps carried", rate], ["warnings in the node's log", len(warnings)]])
    calls = sum(len(one["ms"]) for one in found.values())
    report.say("\nA step stands here for a request:")
    processes_table(report, {"api": (calls, after.since(before), after.rss_mb)})
    report.goal("create p99", percentile(found["create"]["ms"], 0.99), GOAL_CREATE_MS, unit=" ms")
    short = found["get, created"]["ms"] + found["get, moving"]["ms"]
    report.goal("GET of a run p99", percentile(short, 0.99), GOAL_GET_MS, unit=" ms")
    report.goal("steps a second beside", rate, options.rate * 0.95, at_most=False)
    refused = sum(count for one in found.values() for status, count in one["statuses"].items() if status != "200")
    report.goal("requests not answered 200", refused, 0)
    report.raw["found"] = found


async def make_workflow(node: Node) -> str:
    """The id of a workflow whose first step waits for a person, made over HTTP."""
    async with Client(node.port, most=1) as client:
        body = {"title": "bench", "spec": spec(2, approval_policy="manual")}
        status, said = await client.send(request("POST", "/v1/workflows", orjson.dumps(body), token=token()))
    if status != 200:
        raise RuntimeError(f"the workflow was answered {status}: {said!r}")
    return str(orjson.loads(said)["workflow_id"])


async def _steady(place: Place, options: Options) -> list[str]:
    """Runs whose steps take a while, so many that the wanted number of steps ends each second under the load."""
    count = max(1, round(options.rate * (HOLD_MS + TICK_MS + GAP_MS) / 1000))
    of = spec(min(MOST_STEPS, (options.seconds + 10) * 1000 // HOLD_MS), hold_ms=HOLD_MS)
    made = []
    for _ in range(count):
        made += await make_runs(place, 1, of)
        await asyncio.sleep(HOLD_MS / 1000 / count)
    await until(place, "SELECT count(*) FROM workflow_runs WHERE current_step_index > 1", count)
    return [str(run_id) for run_id in made]


async def _created(node: Node, workflow: str) -> list[str]:
    """Runs as the measurement will create them."""
    data = request("POST", RUNS, orjson.dumps({"workflow_id": workflow}), token=token())
    async with Client(node.port, most=1) as client:
        return [str(orjson.loads((await client.send(data))[1])["run_id"]) for _ in range(CREATED)]


async def _moving(place: Place, options: Options) -> list[str]:
    """Runs of ten steps that move as long as is measured."""
    of = spec(10, hold_ms=(options.seconds + 10) * 1000 // 10)
    return [str(run_id) for run_id in await make_runs(place, MOVING, of)]


def _plan(options: Options, workflow: str, read: Sequence[list[str]], carried: list[str]) -> list[Entry]:
    def reads(kind: str, of: list[str], rate: float) -> list[Entry]:
        count = int(rate * options.seconds)
        return [(n / rate, f"get, {kind}", "GET", f"{RUNS}/{of[n % len(of)]}", None) for n in range(count)]

    creations = options.creations * options.seconds
    plan: list[Entry] = [
        (n / options.creations, "create", "POST", RUNS, {"workflow_id": workflow}) for n in range(creations)
    ]
    created, moving = read
    plan += reads("created", created, options.reads / 2) + reads("moving", moving, options.reads / 2)
    return sorted(plan + reads("long", carried, options.long), key=lambda entry: entry[0])
