"""Tests of the dev world run on uvloop, as ``runwarden dev`` does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import uvloop

POLL_S = 0.005


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def eventually(holds: Callable[[], bool], *, within_s: float = 10.0) -> None:
    """Polls until something outside this process holds; fails when the time is over."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(POLL_S)
