"""Where a node's CPU goes: a load with the node under a sampling profiler, split by room and by function.

``LOAD=steps`` is that of ``throughput``, on one node; ``LOAD=creations`` creates runs over HTTP that then wait for a
person, one after another on a few connections, and what stands for a step is then a run.

A function belongs to the room of its module; what it calls outside of ours is its own cost. See ``profiled``.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from tests.bench.api import RUNS, make_workflow
from tests.bench.load import Carried, carry, spec, until
from tests.bench.report import Report
from tests.bench.stack import Node, Place, Stack, token
from tests.bench.thin import Client, request

ROOMS = (
    ("ingest", ("gateway_client/stream.py", "gateway_client/models.py", "daemon/runtime/ingest.py")),
    ("publish", ("daemon/fabric/bus.py", "daemon/runtime/telling.py")),
    ("inbox, fabric", ("daemon/fabric/",)),
    ("machine, fold", ("daemon/machine/", "daemon/runtime/actor.py")),
    ("commit", ("daemon/store/",)),
    ("dispatch", ("daemon/runtime/dispatch.py", "gateway_client/")),
    ("host, owning", ("daemon/runtime/",)),
    ("telemetry", ("daemon/telemetry.py",)),
    ("api", ("daemon/api/",)),
    ("other", ("daemon/",)),
    ("event loop", ("",)),
)
"""Room → beginnings of paths; the first that fits. Nothing of ours is left for the event loop."""
PUBLISHING = frozenset({"Transition.told", "Transition.told.<locals>.<genexpr>", "Told.pack", "frames_of"})
"""What makes the watchers' frames stands in the machine, and is done for them."""
CONNECTIONS = 8
DONE_S = 30.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=profile LOAD=steps RUNS=1000 STEPS=10 INFLIGHT=200 TOP=40``."""

    load: str = "steps"

    runs: int = 1000
    steps: int = 10
    inflight: int = 200
    top: int = 40
    """Functions that are listed."""


MINIATURE = Options(runs=20, steps=5, inflight=10, top=3)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """One load, its CPU and its ticks."""
    file = stack.home / "node.ticks"
    async with stack.place() as place:
        node = await place.start_node(under=("tests.bench.profiled", str(file)))
        await carry(place, spec(2), runs=4, inflight=4)
        node.process.send_signal(signal.SIGUSR1)
        if options.load == "steps":
            carried = await carry(place, spec(options.steps), runs=options.runs, inflight=options.inflight)
        else:
            carried = await create(place, node, options)
        node.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(DONE_S):
            while not file.exists():
                await asyncio.sleep(POLL_S)
    ticks: list[tuple[str, int, str, int]] = orjson.loads(file.read_bytes())
    whole = sum(one[3] for one in ticks)
    a_tick = 1000 * carried.cpu_s["node"] / carried.steps / max(1, whole)
    rooms, functions = split(ticks)
    rows: list[list[object]] = [
        [room, 100 * share / whole, share * a_tick] for room, share in rooms.most_common() if share
    ]
    report.table(["room", "%", "ms a step"], [*rows, ["the node", 100.0, whole * a_tick]])
    listed = [[name, 100 * share / whole, share * a_tick] for name, share in functions.most_common(options.top)]
    report.table(["function, with what it calls outside", "%", "ms a step"], listed)
    report.say(f"\n{carried.rate:,.0f} {options.load}/s under the profiler, {whole:,} ticks")
    report.raw["ticks"] = ticks


async def create(place: Place, node: Node, options: Options) -> Carried:
    """Runs created over HTTP, until all of them wait and have left the memory of the node."""
    data = request("POST", RUNS, orjson.dumps({"workflow_id": await make_workflow(node)}), token=token())
    before = place.stack.usage()
    async with Client(node.port, most=CONNECTIONS) as client:
        answers = await asyncio.gather(*(client.send(data) for _ in range(options.runs)))
        if any(status != 200 for status, _ in answers):
            raise RuntimeError("a run was not created")
        await until(place, "SELECT count(*) FROM workflow_runs WHERE status = 'paused' AND owner IS NULL", options.runs)
    after = place.stack.usage()
    return Carried(options.runs, after.at - before.at, [], after.since(before), after.rss_mb)


def split(ticks: Sequence[tuple[str, int, str, int]]) -> tuple[Counter[str], Counter[str]]:
    """Ticks by room, and by function of ours."""
    rooms: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for path, _line, function, count in ticks:
        rooms[room_of(path, function)] += count
        functions[f"{path} {function}".strip()] += count
    return rooms, functions


def room_of(path: str, function: str) -> str:
    """The room of a function."""
    if function in PUBLISHING and path.startswith("daemon/machine/"):
        return "publish"
    return next(room for room, starts in ROOMS if path.startswith(starts))
