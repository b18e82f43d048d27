"""Presence: this node says that it lives, so that the sweep knows whose runs are orphans without asking for each lease.

The word runs out with the leases: both are renewed together and last as long. Used by ``runner``.
"""

from __future__ import annotations

import asyncio

from daemon.errors import FabricUnavailable
from daemon.fabric.role import Beacon
from daemon.telemetry import log


class Presence:
    """Shines until cancelled; ``leave`` ends it at once, for a drain."""

    def __init__(self, beacon: Beacon, *, ttl_s: float) -> None:
        self._beacon = beacon
        self._pause_s = ttl_s / 3

    async def run(self) -> None:
        while True:
            try:
                await self._beacon.shine()
            except FabricUnavailable as fault:
                log.warning("nobody can be told that this node lives", fault=str(fault))
            await asyncio.sleep(self._pause_s)

    async def leave(self) -> None:
        try:
            await self._beacon.douse()
        except FabricUnavailable as fault:
            log.warning("the beacon was not doused, it will run out", fault=str(fault))
