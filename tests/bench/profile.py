"""Where a node's CPU goes: a throughput load with the node under a sampling profiler, split by room and by function.

A function belongs to the room of its module; what it calls outside of ours is its own cost. See ``profiled``.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from tests.bench.load import carry, spec
from tests.bench.report import Report
from tests.bench.stack import Stack

ROOMS = (
    ("ingest", ("gateway_client/stream.py", "gateway_client/models.py", "daemon/runtime/ingest.py")),
    ("publish", ("daemon/fabric/bus.py",)),
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
PUBLISHING = frozenset({"Transition.told", "Transition.told.<locals>.<genexpr>", "Told.pack", "Inbox.after", "frame"})
"""What makes and sends the watchers' frames stands in the machine and in the inbox, and is done for them."""
DONE_S = 30.0
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Options:
    """``make bench WHAT=profile RUNS=1000 STEPS=10 INFLIGHT=200 TOP=40``."""

    runs: int = 1000
    steps: int = 10
    inflight: int = 200
    top: int = 40
    """Functions that are listed."""


MINIATURE = Options(runs=20, steps=5, inflight=10, top=3)


async def measure(stack: Stack, options: Options, report: Report) -> None:
    """One load, its CPU and its ticks."""
    steps, file = options.runs * options.steps, stack.home / "node.ticks"
    async with stack.place() as place:
        node = await place.start_node(under=("tests.bench.profiled", str(file)))
        await carry(place, spec(2), runs=4, inflight=4)
        node.process.send_signal(signal.SIGUSR1)
        carried = await carry(place, spec(options.steps), runs=options.runs, inflight=options.inflight)
        node.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(DONE_S):
            while not file.exists():
                await asyncio.sleep(POLL_S)
    ticks: list[tuple[str, int, str, int]] = orjson.loads(file.read_bytes())
    whole = sum(one[3] for one in ticks)
    a_tick = 1000 * carried.cpu_s["node"] / steps / max(1, whole)
    rooms, functions = split(ticks)
    rows: list[list[object]] = [
        [room, 100 * share / whole, share * a_tick] for room, share in rooms.most_common() if share
    ]
    report.table(["room", "%", "ms a step"], [*rows, ["the node", 100.0, whole * a_tick]])
    listed = [[name, 100 * share / whole, share * a_tick] for name, share in functions.most_common(options.top)]
    report.table(["function, with what it calls outside", "%", "ms a step"], listed)
    report.say(f"\n{carried.rate:,.0f} steps/s under the profiler, {whole:,} ticks")
    report.raw["ticks"] = ticks


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
    if function in PUBLISHING and path.startswith(("daemon/machine/", "daemon/fabric/")):
        return "publish"
    return next(room for room, starts in ROOMS if path.startswith(starts))
