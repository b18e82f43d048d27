"""Roles: what only one node does at a time (ingest of a Gateway, its standby, the sweep), and beacons that tell of it.

Used by ``runtime/ingest`` and ``runtime/sweep``. A role is a key with a TTL; losing Redis loses the role, never work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from daemon.fabric.client import Client, speaking
from daemon.fabric.keys import Keys


class Role:
    """One role of this node: ``hold`` tries to take or keep it, ``leave`` gives it up."""

    def __init__(self, client: Client, keys: Keys, name: str, *, node: str, ttl_s: float) -> None:
        self._client = client
        self._key = keys.role(name)
        self._node = node
        self._ttl_ms = int(ttl_s * 1000)
        self._renew = client.script("renew")
        self._unlock = client.script("unlock")
        self.term = 0
        """The holder's term: the server's clock (ms) when it took the role, so it outlives a flush; 0: not held."""

    async def hold(self) -> bool:
        """Whether the role is ours for another TTL. Raises FabricUnavailable."""
        with speaking():
            if self.term:
                answer = await self._renew(keys=[self._key], args=[self._ttl_ms, self._node])
                if answer[0] != b"l":
                    return True
                self.term = 0
                return False
            if not await self._client.redis.set(self._key, self._node, nx=True, px=self._ttl_ms):
                return False
            seconds, micros = await self._client.redis.time()
            self.term = seconds * 1000 + micros // 1000
            return True

    async def taken(self) -> bool:
        """Whether anybody has the role. Raises FabricUnavailable."""
        with speaking():
            return bool(await self._client.redis.exists(self._key))

    async def leave(self) -> None:
        """Give the role up, if it is ours. Raises FabricUnavailable."""
        if self.term:
            self.term = 0
            with speaking():
                await self._unlock(keys=[self._key], args=[self._node])


async def shining(client: Client, keys: Keys, names: Sequence[str]) -> set[str]:
    """Which of these beacons somebody keeps alight, in one round trip. Raises FabricUnavailable."""
    with speaking():
        async with client.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.exists(keys.beacon(name))
            answers = await pipe.execute()
    return {name for name, there in zip(names, answers, strict=True) if there}


class Beacon:
    """A word to all nodes that holds as long as it is repeated: "the Gateway is heard", "a standby listens"."""

    def __init__(self, client: Client, keys: Keys, name: str, *, node: str, ttl_s: float) -> None:
        self._client = client
        self._key = keys.beacon(name)
        self._node = node
        self._ttl_ms = int(ttl_s * 1000)
        self._unlock = client.script("unlock")
        self._word = node
        self._times = 0

    def begin_anew(self) -> None:
        """From now on it shines with another word, by which those who look know that there was a break."""
        self._times += 1
        self._word = f"{self._node} {self._times}"

    async def shine(self) -> None:
        """Say it for another TTL. Raises FabricUnavailable."""
        with speaking():
            await self._client.redis.set(self._key, self._word, px=self._ttl_ms)

    async def douse(self) -> None:
        """Take it back, if it was ours. Raises FabricUnavailable."""
        with speaking():
            await self._unlock(keys=[self._key], args=[self._word])

    async def seen(self) -> bool:
        """Whether anybody says it. Raises FabricUnavailable."""
        return await self.word() is not None

    async def word(self) -> bytes | None:
        """What is said, if anybody says it. Raises FabricUnavailable."""
        with speaking():
            word: Any = await self._client.redis.get(self._key)
        return None if word is None else bytes(word)
