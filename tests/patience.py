"""Waiting for something that another task or process brings about: polled until it holds, with a deadline, no luck."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

POLL_S = 0.005
PATIENCE_S = 20.0
"""For what shall come: a shared machine may stall for seconds. Below the 30 s after which a call that was forgotten is
looked at anyway, so that no test takes that look for what it waits for."""

_T = TypeVar("_T")


async def eventually(holds: Callable[[], _T | Awaitable[_T]], *, within_s: float = PATIENCE_S, what: str = "it") -> _T:
    """Polls ``holds`` (plain or async) until it answers something true, and answers that; fails when time is over."""
    until = time.monotonic() + within_s
    while True:
        found = holds()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        assert time.monotonic() < until, f"{what} never came to hold"
        await asyncio.sleep(POLL_S)


def wait_until(
    holds: Callable[[], object],
    *,
    within_s: float = PATIENCE_S,
    what: Callable[[], object] = lambda: "it never came to hold",
) -> None:
    """As ``eventually``, for code without an event loop; ``what`` tells more when time is over."""
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until, what()
        time.sleep(POLL_S)


async def let_pass(seconds: float) -> None:
    """Time goes by, for a sentence that says what does not happen in it; never to wait for what shall."""
    await asyncio.sleep(seconds)
