"""``daemon serve`` with a sampling profiler, between two SIGUSR1: ``python -m tests.bench.profiled FILE serve``.

The kernel's ITIMER_PROF ticks in CPU time (some 250 times a CPU second), so waiting costs nothing and other work on the
machine does no harm; and unlike cProfile it does not make calls dearer than they are. Each tick is charged to the
innermost frame of ours: what it calls outside (builtins, asyncpg, redis-py, orjson …) is its cost. Used by ``profile``.
"""

from __future__ import annotations

import dis
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import orjson

from daemon.cli import main

ROOT = Path(__file__).resolve().parents[2]
OURS = (f"{ROOT}/daemon/", f"{ROOT}/gateway_client/")
FRAME_OF_THE_LOOP = f"{ROOT}/daemon/cli/process.py"
PERIOD_S = 0.001
RESUME = dis.opmap["RESUME"]
LOOP = ("", 0, "event loop")

Place = tuple[str, int, str]
"""Path from the root, line, function."""


def where(frame: FrameType | None) -> Place:
    """Who is to be charged.

    Python runs the handler at the next instruction that looks for signals. The first of a function (RESUME) is such
    a one: then the time was its caller's, or, with no caller of ours, the event loop's.
    """
    if frame is not None and frame.f_lasti >= 0 and frame.f_code.co_code[frame.f_lasti] == RESUME:
        frame = frame.f_back
    while frame is not None and not frame.f_code.co_filename.startswith(OURS):
        frame = frame.f_back
    if frame is None or frame.f_code.co_filename == FRAME_OF_THE_LOOP:
        return LOOP
    return frame.f_code.co_filename.removeprefix(f"{ROOT}/"), frame.f_lineno, frame.f_code.co_qualname


class Profile:
    """Counts ticks while it is on."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ticks: Counter[Place] = Counter()
        self._on = False
        signal.signal(signal.SIGPROF, self._tick)
        signal.signal(signal.SIGUSR1, self._switch)

    def _tick(self, _number: int, frame: FrameType | None) -> None:
        self._ticks[where(frame)] += 1

    def _switch(self, _number: int, _frame: FrameType | None) -> None:
        """On; or off, and the ticks are written: ``[[path, line, function, ticks], …]``."""
        self._on = not self._on
        period_s = PERIOD_S if self._on else 0.0
        signal.setitimer(signal.ITIMER_PROF, period_s, period_s)
        if not self._on:
            draft = self._file.with_suffix(".draft")
            draft.write_bytes(orjson.dumps([[*place, ticks] for place, ticks in self._ticks.items()]))
            draft.rename(self._file)


if __name__ == "__main__":
    Profile(Path(sys.argv.pop(1)))
    main()
