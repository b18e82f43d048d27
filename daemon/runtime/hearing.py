"""Hearing: all ears of this node, one ``Ingest`` for each Gateway and one for the Gateways' Redis where they have one.

Used by ``runner``; the host asks it as ``ports.Weather``. The ears are independent: each has its own holder and standby
among the nodes, so one Gateway that is away takes nothing from the others.

Where there is a Redis, RESULT, INVOKE_ACK and CANCEL_ACK are taken from both, the event stream and ``bridge:evt``: each
has a way of losing them that the other has not (a stream that overflows drops them silently; a Gateway whose Redis is
away publishes on its stream only), and to the machine a repeat is nothing. CHUNKs have no such name of their own, so a
line that came both ways would be logged twice: they are taken from the event streams alone, and are the first to be
lost when a stream is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from daemon.config import Settings
from daemon.fabric.client import Client
from daemon.fabric.inbox import Inbox
from daemon.fabric.keys import Keys
from daemon.fabric.role import Beacon, Role
from daemon.machine.commands import Urgency
from daemon.runtime.ingest import URGENCY, Ingest, Source
from daemon.runtime.residents import Residents
from gateway_client import Directory, Gateways

REDIS = "*"
"""The ear that hears all Gateways through their Redis; no Gateway can be called so."""
FROM_REDIS: Mapping[str, Urgency] = {kind: urgency for kind, urgency in URGENCY.items() if kind != "CHUNK"}


class Hearing:
    """``ears`` by the Gateway's name."""

    def __init__(self, ears: Mapping[str, Ingest], directory: Directory) -> None:
        self.ears = ears
        self._directory = directory

    @property
    def all_heard(self) -> bool:
        """Whether every Gateway is heard by its own stream, as nearly always."""
        return all(ear.subscribed for ear in self.ears.values())

    def unheard(self, agents: frozenset[str]) -> frozenset[str]:
        """Those of the agents whose Gateway nobody hears, neither by its stream nor through Redis.

        An agent that nobody knows may be on any Gateway, so all of them must be heard.
        """
        deaf = self.deaf()
        if not deaf or (REDIS in self.ears and REDIS not in deaf) or deaf == [REDIS]:
            return frozenset()
        return frozenset(agent for agent in agents if (self._directory.known(agent) or deaf[0]) in deaf)

    def deaf(self) -> list[str]:
        """The Gateways that nobody hears (``*`` for their Redis)."""
        return [name for name, ear in self.ears.items() if not ear.subscribed]

    def parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        """The ears by name, and what keeps the directory up to date; each runs until cancelled."""
        return {f"ingest {name}": ear.run() for name, ear in self.ears.items()} | {"directory": self._directory.run()}

    async def leave(self) -> None:
        """Part of a drain: every ear stops once its successor hears."""
        await asyncio.gather(*(ear.leave() for ear in self.ears.values()))


def open_ears(
    settings: Settings,
    *,
    node: str,
    redis: Client,
    keys: Keys,
    gateways: Gateways,
    inbox: Inbox,
    residents: Residents,
    missed: Callable[[], None],
    unsure: Callable[[], None],
    returned: Callable[[str], None],
) -> Hearing:
    """An ear for each Gateway, and one for their Redis; none of them listens yet."""
    ttl_s = settings.runtime.lease_ttl_s

    def ear(name: str, source: Source, takes: Mapping[str, Urgency]) -> Ingest:
        return Ingest(
            gateway=name,
            source=source,
            takes=takes,
            inbox=inbox,
            hand=residents.hand,
            ring=residents.ring,
            holder=Role(redis, keys, f"ingest:{name}", node=node, ttl_s=ttl_s),
            standby=Role(redis, keys, f"ingest-standby:{name}", node=node, ttl_s=ttl_s),
            heard=Beacon(redis, keys, f"gateway-heard:{name}", node=node, ttl_s=ttl_s),
            standby_hears=Beacon(redis, keys, f"standby-hears:{name}", node=node, ttl_s=ttl_s),
            ttl_s=ttl_s,
            retry_s=settings.gateway.gateway_retry_s,
            missed=missed,
            unsure=unsure,
            moved=gateways.directory.suspect,
            returned=returned,
        )

    ears = {name: ear(name, client.events, URGENCY) for name, client in gateways.clients.items()}
    if gateways.redis is not None:
        ears[REDIS] = ear(REDIS, gateways.redis.events, FROM_REDIS)
    return Hearing(ears, gateways.directory)
