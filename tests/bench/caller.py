"""An open-loop HTTP load as a process of its own: each request leaves at its time, whatever became of the others.

    python -m tests.bench.caller PORT < plan.json

The plan is ``{"token": …, "entries": [[at_s, kind, method, path, body], …]}``, entries in order, times from the start.
Prints ``{kind: {"ms": […], "statuses": {…}}}``. A latency runs from the time in the plan to the answer, so a late start
counts as slowness.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import orjson
import uvloop

from tests.bench.thin import Client, request

CONNECTIONS = 256
START_S = 0.2
"""Before the first request, so that what is due at once is not late."""

Entry = tuple[float, str, str, str, Any]


class Found:
    """Latencies in ms and statuses, by kind; status 0: no answer."""

    def __init__(self) -> None:
        self.ms: dict[str, list[float]] = {}
        self.statuses: dict[str, Counter[int]] = {}

    def answered(self, kind: str, due: float, answer: asyncio.Future[tuple[int, bytes]]) -> None:
        status = 0 if answer.exception() is not None else answer.result()[0]
        self.ms.setdefault(kind, []).append((time.monotonic() - due) * 1000)
        self.statuses.setdefault(kind, Counter())[status] += 1


async def call(port: int, bearer: str, plan: Sequence[Entry]) -> Found:
    """Carry a plan out."""
    found = Found()
    entries = [
        (at, kind, request(method, path, orjson.dumps(body) if body is not None else b"", token=bearer))
        for at, kind, method, path, body in plan
    ]
    async with Client(port, most=CONNECTIONS) as client:
        began, answers = time.monotonic() + START_S, []
        for at, kind, data in entries:
            due = began + at
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            answer = client.send(data)
            answer.add_done_callback(partial(found.answered, kind, due))
            answers.append(answer)
        await asyncio.wait(answers)
    return found


async def call_apart(port: int, bearer: str, plan: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """As ``call``, in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.caller", str(port)]
    caller = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said, _ = await caller.communicate(orjson.dumps({"token": bearer, "entries": plan}))
    if caller.returncode:
        raise RuntimeError("the caller failed")
    told: dict[str, dict[str, Any]] = orjson.loads(said)
    return told


if __name__ == "__main__":
    given = orjson.loads(sys.stdin.buffer.read())
    done = uvloop.run(call(int(sys.argv[1]), given["token"], given["entries"]))
    statuses = {kind: dict(counted) for kind, counted in done.statuses.items()}
    told = {kind: {"ms": done.ms[kind], "statuses": statuses[kind]} for kind in done.ms}
    sys.stdout.buffer.write(orjson.dumps(told, option=orjson.OPT_NON_STR_KEYS))
