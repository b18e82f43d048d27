"""How often one caller may change who may do what: each change makes every node look again before its next calls.

Used by ``contract`` for the routes that say so. The bound is a caller's and a node's. Admins are not counted: they bind
agents by the thousand, and whoever is one can stop everything anyway.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from aiohttp import web

from daemon.auth.caller import Caller
from daemon.errors import TooMany

MOST = 120
"""Changes of one caller in a window."""
WINDOW_S = 60.0
CALLERS = 10_000
"""Callers that are kept in mind; whose window began first is forgotten first."""


@dataclass(slots=True)
class _Window:
    since: float
    changes: int = 0


class Pace:
    """Who changed how much lately, on this node."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}

    def keep(self, caller: Caller) -> None:
        """Count one change. Raises TooMany when the caller has made as many as they may for now."""
        if caller.admin:
            return
        now = time.monotonic()
        window = self._windows.get(caller.user_id)
        if window is None or now - window.since >= WINDOW_S:
            self._windows.pop(caller.user_id, None)  # so that it stands last again
            self._windows[caller.user_id] = window = _Window(now)
            if len(self._windows) > CALLERS:
                del self._windows[next(iter(self._windows))]
        if window.changes >= MOST:
            message = f"You may change who may do what {MOST} times a minute: wait a moment, and go on."
            raise TooMany(message, code="too_many_changes")
        window.changes += 1


PACE: web.AppKey[Pace] = web.AppKey("pace", Pace)
