"""Commands as processes: a loop to run on, and what signals do to it. For the commands of this folder."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_loop(work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
    """What the work returns, on uvloop; None when a signal cancelled it."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(work())
        except (asyncio.CancelledError, KeyboardInterrupt):
            return None


async def until_signal(work: Coroutine[Any, Any, T]) -> T:
    """The work, cancelled by the first signal, which lets it clean up; a second one cuts the cleaning short."""
    task = asyncio.current_task()
    if task is not None:
        on_signals(task.cancel)
    return await work


def on_signals(act: Callable[[], object]) -> None:
    """Call ``act`` for each wish to end: Ctrl-C, SIGTERM, a closed terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, act)
