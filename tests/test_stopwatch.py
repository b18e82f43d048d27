"""The stopwatch of the tests leaves out the time in which its process was not let run, and no other."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from tests.patience import let_pass

STOOD_S = 1.0
SCRIPT = """
import sys
from tests.stopwatch import Stopwatch
with Stopwatch() as watch:
    print("begun", flush=True)
    sys.stdin.readline()
    print(watch.seconds, watch.stalled, flush=True)
"""


async def timed(*, stopped: bool) -> tuple[float, float]:
    """(seconds, stalled) of a process that waited for ``STOOD_S`` of somebody else's time, or was stopped for it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SCRIPT, stdin=PIPE, stdout=PIPE, cwd=Path(__file__).parents[1]
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    if stopped:
        process.send_signal(signal.SIGSTOP)
    await let_pass(STOOD_S)
    process.send_signal(signal.SIGCONT)
    process.stdin.write(b"\n")
    seconds, stalled = map(float, (await process.stdout.readline()).split())
    await process.wait()
    return seconds, stalled


async def test_what_a_process_waits_for_is_time_and_what_it_was_not_let_run_for_is_none() -> None:
    _, stalled = await timed(stopped=True)
    assert stalled > 0.8 * STOOD_S
    seconds, stalled = await timed(stopped=False)
    assert seconds + stalled > 0.8 * STOOD_S
    assert seconds > 0
