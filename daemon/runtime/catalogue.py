"""What tools say of themselves: the hints by which a harmless call of unknown outcome is repeated without a person.

Filled in the background whenever an agent is called, so that it is known long before an outcome can become unknown;
read in turns without waiting. What cannot be learned stays unknown, and then a person decides.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping

from daemon.machine.needs import Hint
from daemon.telemetry import log
from gateway_client import GatewayError, ToolInfo

FRESH_S = 60.0
"""An agent's list is asked for again after this; agents tell their tools once per connection."""
RETRY_S = 5.0
AGENTS_KEPT = 2_000
FETCHES = 4
"""At once; more are not begun and are tried again at the agent's next call."""


class Catalogue:
    """Hints by (agent, tool). ``tools_of`` asks a Gateway for an agent's list and may raise GatewayError."""

    def __init__(
        self, tools_of: Callable[[str], Awaitable[Iterable[ToolInfo]]], monotonic: Callable[[], float]
    ) -> None:
        self._tools_of = tools_of
        self._monotonic = monotonic
        self._hints: dict[tuple[str, str], Hint] = {}
        self._agents: OrderedDict[str, tuple[float, tuple[tuple[str, str], ...]]] = OrderedDict()
        """When to ask again (monotonic s), and the keys in ``_hints``; the longest unused first."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def hints(self) -> Mapping[tuple[str, str], Hint]:
        """Everything known now; read only."""
        return self._hints

    def want(self, agent_id: str) -> None:
        """Somebody is about to need this agent's hints: see that they are fresh."""
        known = self._agents.get(agent_id)
        now = self._monotonic()
        if (known is not None and now < known[0]) or len(self._tasks) >= FETCHES:
            return
        self._agents[agent_id] = (now + RETRY_S, known[1] if known is not None else ())
        task = asyncio.get_running_loop().create_task(self._learn(agent_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def returned(self, agent_id: str) -> None:
        """The agent connected anew, perhaps with other tools under old names: nothing is assumed until it is asked."""
        if agent_id in self._agents:
            self._forget(agent_id)
            self.want(agent_id)

    async def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _learn(self, agent_id: str) -> None:
        asked = self._agents.get(agent_id)
        try:
            tools = await self._tools_of(agent_id)
        except GatewayError as fault:  # what was known of an agent stays true while it is away
            log.debug("an agent's tools are not known", agent_id=agent_id, fault=str(fault))
            return
        if self._agents.get(agent_id) is not asked:  # it returned meanwhile, and is asked again
            return
        self._forget(agent_id)
        hints = {(agent_id, tool.name): hint for tool in tools if (hint := hint_of(tool)) is not None}
        self._hints |= hints
        self._agents[agent_id] = (self._monotonic() + FRESH_S, tuple(hints))
        while len(self._agents) > AGENTS_KEPT:
            self._forget(next(iter(self._agents)))

    def _forget(self, agent_id: str) -> None:
        _, keys = self._agents.pop(agent_id, (0.0, ()))
        for key in keys:
            self._hints.pop(key, None)


def hint_of(tool: ToolInfo) -> Hint | None:
    """MCP's annotations in one word; absent hints mean the worst, as the protocol says."""
    if tool.annotations.get("readOnlyHint") is True:
        return "read_only"
    return "idempotent" if tool.annotations.get("idempotentHint") is True else None
