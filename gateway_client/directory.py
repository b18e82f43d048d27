"""The directory: which of several Gateways holds an agent.

`gateways` uses it. What it says is a hint that makes the first try right: the Gateway that is called knows better, its
404 is a proof that nothing was sent, and then the directory is asked again. So an entry may be old; it must not be
missing where an agent is online. Sources, the first that knows: `agent_online:{agent}` in the Gateways' Redis where
that is given, else the agents list of every Gateway (`online`, not `cached`; of two the later connection).
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway_client.client import GatewayClient
from gateway_client.errors import GatewayError, NotSent, Unavailable
from gateway_client.models import AgentInfo
from gateway_client.registry import GatewayRedis

REFRESH_S: Final = 5.0
"""Between two looks at the agents lists."""
DOUBT_S: Final = 0.5
"""The least of it: anybody may say that an agent has moved, as often as they like."""
FRESH_S: Final = 2.0
"""What Redis said is believed for so long."""
LIST_TIMEOUT_S: Final = 2.0
"""For the agents list of one Gateway; a hanging one must not hold up the calls to its neighbours for long."""
REDIS_REST_S: Final = 2.0
"""A Redis that did not answer is left alone for this long."""


@dataclass(slots=True)
class _Entry:
    gateway: str
    told_at: float = -FRESH_S  # monotonic seconds of Redis' word for it
    suspected: bool = False


class Directory:
    """Asks, remembers, and is told when it was wrong. One Gateway alone needs no asking: it has every agent."""

    def __init__(self, clients: Mapping[str, GatewayClient], redis: GatewayRedis | None) -> None:
        self._clients = clients
        self._redis = redis
        self._only = next(iter(clients)) if len(clients) == 1 else None
        self._entries: dict[str, _Entry] = {}
        self._names: dict[str, str] = {}  # ids that Gateways have in Redis and not in our settings → our names
        self._listing = asyncio.Lock()
        self._listed_at = -math.inf
        self._deaf: list[str] = []  # those that did not answer the last time
        self._redis_rests_until = -math.inf
        self._doubt = asyncio.Event()

    async def run(self) -> None:
        """Keeps the lists up to date, until cancelled; sooner where there is doubt, but not for every rumour."""
        while self._only is None:
            self._doubt.clear()
            await self._list(time.monotonic())
            await asyncio.sleep(DOUBT_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_S):
                    await self._doubt.wait()

    def known(self, agent_id: str) -> str | None:
        """The last that was heard of the agent, asking nobody; None: nothing."""
        if self._only is not None:
            return self._only
        entry = self._entries.get(agent_id)
        return entry.gateway if entry else None

    def suspect(self, agent_id: str) -> None:
        """Something happened to the agent's connection: look it up before it is called again."""
        entry = self._entries.get(agent_id)
        if entry is not None:
            entry.suspected = True
        self._doubt.set()

    async def find(self, agent_id: str) -> str:
        """The Gateway to call. Raises NotSent: `agent_offline`, or `gateway_unavailable` where one did not answer."""
        if self._only is not None:
            return self._only
        now = time.monotonic()
        entry = self._entries.get(agent_id)
        if entry is not None and not entry.suspected and now - entry.told_at < FRESH_S:
            return entry.gateway
        told = await self._ask_redis(agent_id)
        if told is not None and (name := told if told in self._clients else self._names.get(told)) is not None:
            self._entries[agent_id] = _Entry(name, now)
            return name
        if entry is not None and not entry.suspected:
            return entry.gateway
        return await self._find_in_lists(agent_id, now, told)

    async def find_elsewhere(self, agent_id: str, wrong: str) -> str | None:
        """After `wrong` proved not to have the agent: who else has it, by the Gateways' own lists.

        None when they know no better. Raises NotSent as `find` does.
        """
        if self._only is not None:
            return None
        self._names = {told: name for told, name in self._names.items() if name != wrong}
        self.suspect(agent_id)
        found = await self._find_in_lists(agent_id, time.monotonic(), None)
        return found if found != wrong else None

    async def _find_in_lists(self, agent_id: str, since: float, told: str | None) -> str:
        await self._list(since)
        entry = self._entries.get(agent_id)
        if entry is None:
            if self._deaf:
                raise NotSent("gateway_unavailable", f"{agent_id} is on no other Gateway than perhaps {self._deaf}")
            where = f"; it is said to be connected to {told}, which is none of ours" if told else ""
            raise NotSent("agent_offline", f"{agent_id} is connected to none of {list(self._clients)}{where}")
        if told is not None and entry.gateway not in self._deaf:
            self._names[told] = entry.gateway
        return entry.gateway

    async def _ask_redis(self, agent_id: str) -> str | None:
        if self._redis is None or time.monotonic() < self._redis_rests_until:
            return None
        try:
            return await self._redis.holder(agent_id)
        except Unavailable:
            self._redis_rests_until = time.monotonic() + REDIS_REST_S
            return None

    async def _list(self, since: float) -> None:
        """Asks every Gateway, unless that was begun after `since`: those who want it at once share one answer."""
        async with self._listing:
            if self._listed_at >= since:
                return
            began = time.monotonic()
            lists = await asyncio.gather(*(agents_of(client) for client in self._clients.values()))
            self._learn(dict(zip(self._clients, lists, strict=True)))
            self._listed_at = began

    def _learn(self, lists: Mapping[str, list[AgentInfo] | None]) -> None:
        """What a Gateway that did not answer was known to hold stays with it until it is seen elsewhere."""
        self._deaf = [name for name, agents in lists.items() if agents is None]
        found: dict[str, tuple[int, str]] = {}
        for name, agents in lists.items():
            for agent in agents or ():
                if agent.status == "online":
                    found[agent.agent_id] = max(found.get(agent.agent_id, (-1, "")), (agent.connected_at, name))
        was = self._entries
        self._entries = {agent_id: entry for agent_id, entry in was.items() if entry.gateway in self._deaf}
        for agent_id, (_, name) in found.items():
            before = was.get(agent_id)
            same = before is not None and before.gateway == name and not before.suspected
            self._entries[agent_id] = before if before is not None and same else _Entry(name)


async def agents_of(client: GatewayClient) -> list[AgentInfo] | None:
    """None when the Gateway does not say."""
    try:
        async with asyncio.timeout(LIST_TIMEOUT_S):
            return await client.agents()
    except (GatewayError, TimeoutError):
        return None
