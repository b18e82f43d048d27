"""Telling watchers what was committed. A hint, so no run waits for it; whoever misses one reads the log.

Events are sent whole only of runs that somebody listens to: Redis says how many nodes heard the last word of each. Of
the others it is only said that there is something to read, so the first word that a new watcher hears sends it to the
log, and all that follow are whole. Making and sending them was a tenth of the node's CPU a step.

While a word is on its way, what is said of a run meanwhile is gathered into one: a slow Redis makes fewer words, not
longer queues.
"""

from __future__ import annotations

import asyncio

from daemon.errors import FabricUnavailable
from daemon.machine.record import Told, Transition
from daemon.runtime.actor import Actor
from daemon.runtime.ports import Publisher
from daemon.telemetry import log

MOST_BYTES = 262_144
"""Frames gathered of one run while Redis is slow; past that the log is to be read."""


class Telling:
    """``tell`` from the host; ``run`` until cancelled; ``quiet``: everything was told that was to be told."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._said: dict[Actor, Told] = {}
        self._bell = asyncio.Event()
        self._done = asyncio.Event()
        self._done.set()

    def tell(self, actor: Actor, committed: Transition) -> None:
        """Let watchers know, soon."""
        if not committed.events:
            return
        told, before = committed.told(whole=actor.watched), self._said.get(actor)
        self._said[actor] = told if before is None else before.then(told, most=MOST_BYTES)
        self._done.clear()
        self._bell.set()

    async def quiet(self) -> None:
        """Until nothing is left to be told."""
        await self._done.wait()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            said, self._said = self._said, {}
            try:
                heard = await self._publisher.publish([(actor.id, told) for actor, told in said.items()])
            except FabricUnavailable as fault:
                log.warning("watchers were not told: they will look for themselves", fault=str(fault))
            else:
                for actor, listeners in zip(said, heard, strict=True):
                    actor.watched = listeners > 0
            if not self._said:
                self._done.set()
