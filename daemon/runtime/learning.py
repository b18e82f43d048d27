"""Runs that wait for what stands about their next call, while nobody else does. The host's waiting room."""

from __future__ import annotations

import asyncio

from daemon.errors import StoreUnavailable
from daemon.runtime.actor import Actor
from daemon.runtime.clock import Clock
from daemon.runtime.ports import Authority
from daemon.runtime.residents import Residents
from daemon.telemetry import log


class Learning:
    """``retry_s``: when Postgres is away, how soon they try again."""

    def __init__(self, residents: Residents, clock: Clock, authority: Authority, *, retry_s: float) -> None:
        self._residents = residents
        self._clock = clock
        self._authority = authority
        self._retry_s = retry_s
        self._lacking: asyncio.Queue[Actor] = asyncio.Queue()

    def takes(self, actor: Actor) -> bool:
        """Whether the run lacks something; then it is busy until that is learned, and has its turn afterwards."""
        if not self._authority.lacks(actor.run):
            return False
        self._lacking.put_nowait(actor)
        return True

    async def run(self) -> None:
        """Learn what runs lack, for all that came at once together, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                actors = [await self._lacking.get()]
                while not self._lacking.empty():
                    actors.append(self._lacking.get_nowait())
                group.create_task(self._learn(actors), name="learn")  # whom one agent keeps waiting, keeps nobody else

    async def _learn(self, actors: list[Actor]) -> None:
        for actor in actors:
            actor.rung = actor.rung or "h"
        try:
            await self._authority.learn([actor.run for actor in actors])
        except StoreUnavailable as fault:
            log.warning("turns wait for what stands about their calls", fault=str(fault))
            self._residents.put_back(actors, self._clock.monotonic() + self._retry_s)
            return
        for actor in actors:
            self._residents.free(actor)
