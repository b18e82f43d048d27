"""Whether Redis still remembers what it was told: it may have been flushed, restarted, or replaced by a replica.

Used by ``runtime/sweep``: ``moved`` on every node, ``changed`` on the one that sweeps. The key holds the server's own
``run_id``; where it is missing or another's, letters and offers may be gone with it.
"""

from __future__ import annotations

from typing import Any

from daemon.fabric.client import Client, speaking
from daemon.fabric.keys import Keys

DOUBT = b"?"
"""Stands in the key between ``changed`` and ``seen``, so that a flush between the two is noticed."""


class Generation:
    """The generation key. ``changed`` until somebody has done what follows and says ``seen``."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._key = keys.generation
        self._server = b""
        self._last_met = b""

    async def moved(self) -> bool:
        """Whether another server answers than when this node asked last. Raises FabricUnavailable.

        It may have kept every lease and lost the last letters: a replica that was behind, a file not yet synced.
        """
        with speaking():
            met = _run_id(await self._client.redis.info("server"))
        before, self._last_met = self._last_met, met
        return before not in (b"", met)

    async def changed(self) -> bool:
        """Whether Redis may have forgotten something since the last ``seen`` of any node. Raises FabricUnavailable."""
        with speaking():
            async with self._client.redis.pipeline(transaction=False) as pipe:
                pipe.info("server")
                pipe.get(self._key)
                info, known = await pipe.execute()
            self._server = _run_id(info)
            if known is None:
                await self._client.redis.set(self._key, DOUBT, nx=True)
        return bool(known != self._server)

    async def seen(self) -> None:
        """What follows from the change was done. Of no effect if Redis has forgotten again since. Raises as above."""
        with speaking():
            await self._client.redis.set(self._key, self._server, xx=True)


def _run_id(info: dict[str, Any]) -> bytes:
    return str(info.get("run_id", "unknown")).encode()
