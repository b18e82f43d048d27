"""Telling watchers what was committed. A hint, so no run waits for it; whoever misses one reads the log.

Events are sent whole only of runs that somebody listens to: Redis says how many nodes heard the last word of each. Of
the others it is only said that there is something to read, so the first word that a new watcher hears sends it to the
log, and all that follow are whole. Redis carries a twentieth of the bytes.

What is said while words are on their way goes out together, a word a commit. Where Redis is slow, so that too many of
one run wait, one that sends to the log takes their place: queues have an end.
"""

from __future__ import annotations

import asyncio

from daemon.errors import FabricUnavailable
from daemon.machine.record import Told, Transition
from daemon.runtime.actor import Actor
from daemon.runtime.ports import Later, Publisher
from daemon.telemetry import log

MOST_WORDS = 16
"""Of one run that wait to be told."""


class Telling:
    """``tell`` from the host; ``run`` until cancelled; ``quiet``: what was said before is told.

    ``later`` puts off what a quick step need not wait for: words about a run whose next call is about to leave.
    """

    def __init__(self, publisher: Publisher, later: Later) -> None:
        self._publisher = publisher
        self._later = later
        self._said: dict[Actor, list[Told]] = {}
        self._bell = asyncio.Event()
        self._told, self._going = asyncio.Event(), asyncio.Event()
        """Set when what waits is told, and when what is on its way is."""
        self._going.set()

    def tell(self, actor: Actor, committed: Transition) -> None:
        """Let watchers know, soon."""
        if not committed.events:
            return
        words = self._said.setdefault(actor, [])
        if len(words) < MOST_WORDS:
            words.append(committed.told(whole=actor.watched))
        else:
            words[:] = [committed.told(whole=False)]
        if committed.run.in_flight:
            self._later(self._bell.set)
        else:
            self._bell.set()

    async def quiet(self) -> None:
        """Until what was said by now is told, or could not be."""
        await (self._told if self._said else self._going).wait()

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await self._bell.wait()
            self._bell.clear()
            if not self._said:  # what was put off has gone out with what could not wait
                continue
            self._going, self._told = self._told, asyncio.Event()
            said, self._said = [(actor, told) for actor, words in self._said.items() for told in words], {}
            try:
                heard = await self._publisher.publish([(actor.id, told) for actor, told in said])
            except FabricUnavailable as fault:
                log.warning("watchers were not told: they will look for themselves", fault=str(fault))
            else:
                for (actor, _), listeners in zip(said, heard, strict=True):
                    actor.watched = listeners > 0
            self._going.set()
