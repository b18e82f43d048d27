"""The nudge: "who may do what has changed". A hint, so that nodes read it now rather than in a moment.

Given by ``api`` after each change, heard by ``runtime/authority``. Nothing depends on it: commits know by themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from daemon.errors import FabricUnavailable
from daemon.fabric.client import Client, speaking
from daemon.fabric.keys import Keys
from daemon.telemetry import log

RETRY_S = 0.5


class Nudge:
    """``give`` from any node; ``run`` hears until cancelled and outlives lost connections."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._channel = keys.authority

    async def give(self) -> None:
        """Tell every node, as far as Redis carries it."""
        try:
            with speaking():
                await self._client.redis.publish(self._channel, b"")
        except FabricUnavailable as fault:
            log.debug("nobody was nudged", fault=str(fault))

    async def run(self, heard: Callable[[], None]) -> None:
        """Call ``heard`` at each nudge, and when it may have missed one."""
        while True:
            ear = self._client.patient.pubsub()
            try:
                with speaking():
                    await ear.subscribe(self._channel)
                    async for _ in ear.listen():
                        heard()
            except Exception as fault:  # noqa: BLE001 - whatever broke the ear, it must hear again
                log.debug("the nudge lost Redis", fault=str(fault))
            finally:
                await ear.aclose()  # type: ignore[no-untyped-call] # redis-py leaves it untyped
            await asyncio.sleep(RETRY_S)
