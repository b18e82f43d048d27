"""What tools say of themselves: annotations and input schemas, as their agents tell them.

Filled in the background whenever an agent is called, so that it is known long before an outcome can become unknown;
read in turns without waiting. What cannot be learned stays unknown: then a person decides whether a call is repeated,
and a tool counts as MCP's defaults say. Before a call is frozen for approval, or intended after one, the agent is asked
anew (``learn``).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple

from daemon.machine.approval import hash_of_schema
from daemon.machine.needs import Hint
from daemon.telemetry import log
from gateway_client import GatewayError, ToolInfo

FRESH_S = 60.0
"""An agent's list is asked for again after this; agents tell their tools once per connection."""
RETRY_S = 5.0
AGENTS_KEPT = 2_000
FETCHES = 16
"""At once; more are not begun and are tried again at the agent's next call."""
PACE_S = 1.0
"""The least between two questions to one agent, however often it is said to have come anew: anybody may say so."""
ROUND_S = 0.25
ROUND = 8
"""Agents that have come anew are asked so many at a time, so often: half of the places stay for who is called."""
PATIENCE_S = 2.0
"""How long a run waits for what an agent says of its tools before it goes on without."""


class _Known(NamedTuple):
    """``again_at``: when to ask again; ``keys``: what is known of it, in ``_about``; ``asked_at``. Monotonic s."""

    again_at: float
    keys: tuple[tuple[str, str], ...] = ()
    asked_at: float = -PACE_S


class About(NamedTuple):
    """One tool as its agent tells it; ``schema_hash`` as ``approval.hash_of_schema``."""

    annotations: Mapping[str, Any]
    schema_hash: str


class Catalogue:
    """What is known by (agent, tool). ``tools_of`` asks a Gateway for an agent's list and may raise GatewayError."""

    def __init__(
        self, tools_of: Callable[[str], Awaitable[Iterable[ToolInfo]]], monotonic: Callable[[], float]
    ) -> None:
        self._tools_of = tools_of
        self._monotonic = monotonic
        self._hints: dict[tuple[str, str], Hint] = {}
        self._about: dict[tuple[str, str], About] = {}
        self._agents: OrderedDict[str, _Known] = OrderedDict()
        """The longest unused first."""
        self._returned: dict[str, None] = {}
        """Those that have come anew and are to be asked, in their order; as many as ``_agents`` at most."""
        self._round: asyncio.TimerHandle | None = None
        """Until when nobody is asked for having come anew."""
        self._pausing: set[str] = set()
        """Of those in ``_tasks``: who is not asked yet, for the sake of ``PACE_S``."""
        self.changes = 0
        """Counts what was learned or forgotten, for those who keep what they made of it."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._asking = asyncio.Semaphore(FETCHES)

    @property
    def hints(self) -> Mapping[tuple[str, str], Hint]:
        """Everything known now; read only."""
        return self._hints

    def about(self, agent_id: str, tool: str) -> About | None:
        """What the agent says of a tool; None: it says nothing, or nobody could ask it."""
        return self._about.get((agent_id, tool))

    def fresh(self, agent_id: str) -> bool:
        """Whether the agent was asked a moment ago, whatever it said, and is not being asked just now."""
        known = self._agents.get(agent_id)
        return known is not None and agent_id not in self._tasks and self._monotonic() < known.again_at

    async def learn(self, agent_ids: Iterable[str]) -> None:
        """Ask those agents that were not asked a moment ago, and wait for what they say; each has ``PATIENCE_S``."""
        wanted = [agent_id for agent_id in agent_ids if not self.fresh(agent_id)]
        asked = [self._tasks.get(agent_id) or self._ask(agent_id) for agent_id in wanted]
        if asked:
            await asyncio.wait(asked)

    def want(self, agent_id: str) -> None:
        """Somebody is about to need this agent's hints: see that they are fresh."""
        if not self.fresh(agent_id) and agent_id not in self._tasks and len(self._tasks) < FETCHES:
            self._ask(agent_id)

    def _ask(self, agent_id: str) -> asyncio.Task[None]:
        known, now = self._agents.get(agent_id) or _Known(0.0), self._monotonic()
        at = max(now, known.asked_at + PACE_S)
        self._agents[agent_id] = asked = _Known(at + RETRY_S, known.keys, at)
        if at > now:
            self._pausing.add(agent_id)
        task = self._tasks[agent_id] = asyncio.get_running_loop().create_task(self._learn(agent_id, asked, at - now))
        task.add_done_callback(lambda _: self._tasks.pop(agent_id, None) if self._tasks.get(agent_id) is task else None)
        return task

    def returned(self, agent_id: str) -> None:
        """The agent connected anew, perhaps with other tools under old names: nothing is assumed until it is asked.

        What was known is forgotten at once, whatever is said how often; asked is after the last of it, at our own pace.
        """
        known = self._agents.get(agent_id)
        if known is None or agent_id in self._pausing:
            return
        self._forget(agent_id)
        self._agents[agent_id] = _Known(self._monotonic(), (), known.asked_at)
        self.changes += bool(known.keys)
        if (asking := self._tasks.pop(agent_id, None)) is not None:
            asking.cancel()
        self._returned[agent_id] = None
        if self._round is None:
            self._ask_returned()

    def _ask_returned(self) -> None:
        """One round of those that have come anew; the next follows while there are more, and never sooner."""
        self._round = None
        if not self._returned:
            return
        self._round = asyncio.get_running_loop().call_later(ROUND_S, self._ask_returned)
        for agent_id in list(islice(self._returned, max(0, min(ROUND, FETCHES - len(self._tasks))))):
            del self._returned[agent_id]
            if agent_id in self._agents:
                self.want(agent_id)

    async def close(self) -> None:
        """Stop asking."""
        if self._round is not None:
            self._round.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _learn(self, agent_id: str, asked: _Known, pause_s: float) -> None:
        if pause_s > 0:
            try:
                await asyncio.sleep(pause_s)
            finally:
                self._pausing.discard(agent_id)
        try:
            async with self._asking, asyncio.timeout(PATIENCE_S):
                tools = list(await self._tools_of(agent_id))
        except (GatewayError, TimeoutError) as fault:  # what was known of an agent stays true while it is away
            log.debug("an agent's tools are not known", agent_id=agent_id, fault=str(fault))
            return
        if self._agents.get(agent_id) is not asked:  # it returned meanwhile, and is asked again
            return
        before = {key: self._about[key] for key in asked.keys}
        about = {(agent_id, tool.name): About(tool.annotations, hash_of_schema(tool.input_schema)) for tool in tools}
        if before != about:
            self.changes += 1
        self._forget(agent_id)
        self._hints |= {(agent_id, tool.name): hint for tool in tools if (hint := hint_of(tool)) is not None}
        self._about |= about
        self._agents[agent_id] = _Known(self._monotonic() + FRESH_S, tuple(about), asked.asked_at)
        while len(self._agents) > AGENTS_KEPT:
            self._forget(next(iter(self._agents)))

    def _forget(self, agent_id: str) -> None:
        known = self._agents.pop(agent_id, None)
        for key in known.keys if known is not None else ():
            self._hints.pop(key, None)
            self._about.pop(key, None)


def hint_of(tool: ToolInfo) -> Hint | None:
    """MCP's annotations in one word; absent hints mean the worst, as the protocol says."""
    if tool.annotations.get("readOnlyHint") is True:
        return "read_only"
    return "idempotent" if tool.annotations.get("idempotentHint") is True else None
