"""Who is online, at all Gateways together: what a person is told of agents. Nothing is decided by it.

Used by `gateways`. `directory` says which Gateway to call; this one says what all of them know of everybody.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway_client.client import GatewayClient
from gateway_client.directory import agents_of
from gateway_client.models import AgentInfo

State = Literal["online", "offline", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The answers of one moment. `deaf`: the Gateways that did not say."""

    agents: Mapping[str, AgentInfo]
    deaf: tuple[str, ...]

    def state(self, agent_id: str) -> State:
        """`offline` only where every Gateway has said so: a registry's word alone may be out of date."""
        agent = self.agents.get(agent_id)
        if agent is not None and agent.status == "online":
            return "online"
        return "unknown" if self.deaf else "offline"

    def last_seen_at(self, agent_id: str) -> int | None:
        """Unix seconds of the last that was heard of it, None when nobody knows of any. Heartbeats do not count."""
        agent = self.agents.get(agent_id)
        return agent.last_seen_at or None if agent is not None else None


async def roster(clients: Mapping[str, GatewayClient]) -> Roster:
    """Asks every Gateway at once; never raises for one that is away."""
    lists = await asyncio.gather(*(agents_of(client) for client in clients.values()))
    found: dict[str, AgentInfo] = {}
    for agent in (agent for agents in lists for agent in agents or ()):
        known = found.get(agent.agent_id)
        if known is None or _rank(agent) > _rank(known):
            found[agent.agent_id] = agent
    deaf = tuple(name for name, agents in zip(clients, lists, strict=True) if agents is None)
    return Roster(agents=found, deaf=deaf)


def _rank(agent: AgentInfo) -> tuple[bool, int]:
    return agent.status == "online", agent.last_seen_at
