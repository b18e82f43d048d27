"""Staying awake for a moment: while one run alone takes quick steps, its node polls for answers instead of sleeping.

A step of a lone run is a chain of short pieces of work on sleeping processes, each of which wakes with cold caches.
To wait awake for the answer to a commit, and for the tool's answer after it, makes such a step a quarter shorter
(tests/bench/RESULTS.md). It costs CPU that nobody else here wanted, and only where it pays: not while several runs
move (they keep the node awake), not for tools that take their time, and not where Postgres needs longer than
``longest_s``, or cannot work while we poll: after ``IN_VAIN`` such commits nothing is polled for ``REST_S``.

What such a step need not wait for is done while Postgres works (``later``): nothing else is to be done then.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from math import inf

from daemon import telemetry
from daemon.runtime.actor import Actor

QUICK_S = 0.005
"""Between two commits of a run that takes quick steps."""
AFTER_S = 0.0005
"""How long to wait awake for what follows a commit: a tool that answers at once, or never mind."""
IN_VAIN = 8
REST_S = 1.0


class Awake:
    """``begun`` and ``over`` around each commit; ``longest_s``: how long one may be waited for awake, 0: not at all."""

    def __init__(self, monotonic: Callable[[], float], *, longest_s: float) -> None:
        self._monotonic = monotonic
        self._longest_s = longest_s
        self._alone: Actor | None = None
        """Whose the last commit was, if it was of one run."""
        self._over_at = -inf
        self._began_at: float | None = None
        """When the commit began that is waited for awake."""
        self._in_vain = 0
        """Commits in a row that took longer than they were waited for."""
        self._rests_until = -inf
        self._until = -inf
        self._since = 0.0
        """From when on the polling is not counted yet."""
        self._waiting: list[Callable[[], object]] = []
        """What was put off; empty unless it polls."""
        self.polls = False
        """Whether the event loop is kept awake."""

    def later(self, what: Callable[[], object]) -> None:
        """Do this once the next commit is on its way or no longer waited for; at once unless the loop is kept awake."""
        if self.polls:
            self._waiting.append(what)
        else:
            what()

    def begun(self, alone: Actor | None) -> None:
        """A commit was sent: of this run alone, or (None) of several."""
        again, self._alone = alone is not None and alone is self._alone, alone
        now = self._monotonic()
        quick = again and now - self._over_at <= QUICK_S and now >= self._rests_until
        self._began_at = now if quick and self._longest_s else None
        if self._waiting:  # not before the bytes of the commit have left, which they do as this turn of the loop ends
            asyncio.get_running_loop().call_soon(self._catch_up)
        if self._began_at is not None:
            self._stay(now + self._longest_s)

    def over(self) -> None:
        """Its answer has come, and what was owed is sent."""
        now = self._over_at = self._monotonic()
        if self._began_at is None:
            return
        self._count(now)
        if now - self._began_at <= self._longest_s:
            self._in_vain = 0
            self._stay(now + AFTER_S)
            return
        self._in_vain += 1
        if self._in_vain == IN_VAIN:
            self._in_vain, self._rests_until = 0, now + REST_S

    def _stay(self, until: float) -> None:
        self._until = until
        if not self.polls:
            self.polls, self._since = True, self._monotonic()
            asyncio.get_running_loop().call_soon(self._poll)

    def _poll(self) -> None:
        """A callback that is always due: so the loop looks for what has come, and does not wait for it."""
        if (now := self._monotonic()) < self._until:
            asyncio.get_running_loop().call_soon(self._poll)
        else:
            self._count(now)
            self.polls = False
            self._catch_up()

    def _catch_up(self) -> None:
        waiting, self._waiting = self._waiting, []
        for what in waiting:
            what()

    def _count(self, now: float) -> None:
        if self.polls:
            telemetry.busy_poll_seconds.inc(now - self._since)
            self._since = now


def pays(longest_s: float) -> float:
    """``longest_s``, or 0 where this process has one CPU: nobody could answer while it polls.

    A quota of CPU time, as containers have, is not seen here; where there is one, let the setting be 0.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return longest_s if cpus > 1 else 0.0
