"""Agents that connected anew, whose calls in flight shall be asked about: all of a second together. The host's.

Anybody may say of any agent that it has come anew, as often as they like, and each time may cost a look at every run
and a question for each call. Nobody who said so is forgotten, and nothing is asked twice within ``EVERY_S``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daemon.machine.spec import NAME_CHARS

EVERY_S = 1.0
MOST = 10_000
"""Names that are kept; with more of them every agent is meant."""


class Returns:
    """``ask``: asks about the calls at these agents; None: about all."""

    def __init__(self, ask: Callable[[frozenset[str] | None], None]) -> None:
        self._ask = ask
        self._agents: set[str] = set()
        self._told = asyncio.Event()

    def note(self, agent_id: str) -> None:
        """This agent came anew: the next question is after now."""
        if len(agent_id) > NAME_CHARS:  # in no workflow
            return
        if len(self._agents) <= MOST:
            self._agents.add(agent_id)
        self._told.set()

    async def run(self) -> None:
        """Ask, and rest, until cancelled."""
        while True:
            await self._told.wait()
            self._told.clear()
            agents, self._agents = self._agents, set()
            self._ask(frozenset(agents) if len(agents) <= MOST else None)
            await asyncio.sleep(EVERY_S)
