"""The ready stream: runs that have no owner, offered to all nodes. A node takes only what it has room for.

Used by ``runtime/host`` (take, done) and by the sweep (mark). An offer taken by a node that died is claimed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from redis.exceptions import ResponseError

from daemon.fabric.client import Client, speaking
from daemon.fabric.keys import Keys
from daemon.machine.commands import RunId

GROUP = "nodes"
BOUND = 20_000
"""Offers past which the sweep waits for room; what wakes a run at this moment is never held back."""

Offer = tuple[bytes, RunId]
"""(entry to acknowledge, the run)."""


class Ready:
    """This node's end of the ready stream."""

    def __init__(self, client: Client, keys: Keys, *, node: str) -> None:
        self._client = client
        self._key = keys.ready
        self._node = node

    async def mark(self, run_ids: Sequence[RunId], *, if_room: bool = False) -> int:
        """Offer runs; answers how many. ``if_room``: only while the stream is below its bound, as repairs may wait."""
        with speaking():
            room = BOUND - int(await self._client.redis.xlen(self._key)) if if_room else len(run_ids)
            chosen = run_ids[: max(0, room)]
            async with self._client.redis.pipeline(transaction=False) as pipe:
                for run_id in chosen:
                    pipe.xadd(self._key, {"r": run_id.hex})
                await pipe.execute()
        return len(chosen)

    async def backlog(self) -> int:
        """Offers that nobody has dealt with yet."""
        with speaking():
            return int(await self._client.redis.xlen(self._key))

    async def take(self, count: int, block_ms: int) -> list[Offer]:
        """At most ``count`` offers, waiting at most ``block_ms``."""
        with speaking():
            try:
                async with self._client.within(block_ms):
                    answer: Any = await self._client.patient.xreadgroup(
                        GROUP, self._node, {self._key: ">"}, count=count, block=block_ms
                    )
            except ResponseError as fault:
                if "NOGROUP" not in str(fault):
                    raise
                await self._make_group()
                return []
        return _offers_of(answer)

    async def reclaim(self, idle_ms: int, count: int) -> list[Offer]:
        """Offers that another node took and neither claimed nor acknowledged for ``idle_ms``."""
        with speaking():
            try:
                answer: Any = await self._client.redis.xautoclaim(
                    self._key, GROUP, self._node, min_idle_time=idle_ms, count=count
                )
            except ResponseError as fault:
                if "NOGROUP" not in str(fault):
                    raise
                await self._make_group()
                return []
        return _offers(answer[1])

    async def give_back(self) -> int:
        """Offer again what this node took and did not deal with, for a drain; answers how many."""
        given = 0
        while taken := await self._taken(count=1000):
            await self.mark([run_id for _, run_id in taken])
            await self.done([entry for entry, _ in taken])
            given += len(taken)
        return given

    async def _taken(self, count: int) -> list[Offer]:
        """The oldest offers that this node has taken and not acknowledged."""
        with speaking():
            try:
                answer: Any = await self._client.redis.xreadgroup(GROUP, self._node, {self._key: "0"}, count=count)
            except ResponseError as fault:
                if "NOGROUP" not in str(fault):
                    raise
                return []
        return _offers_of(answer)

    async def done(self, entries: Sequence[bytes]) -> None:
        """These offers were dealt with, one way or another."""
        if not entries:
            return
        with speaking():
            async with self._client.redis.pipeline(transaction=False) as pipe:
                pipe.xack(self._key, GROUP, *entries)
                pipe.xdel(self._key, *entries)
                await pipe.execute()

    async def _make_group(self) -> None:
        try:
            await self._client.redis.xgroup_create(self._key, GROUP, id="0", mkstream=True)
        except ResponseError as fault:
            if "BUSYGROUP" not in str(fault):
                raise


def _offers_of(answer: Any) -> list[Offer]:
    """The offers in an answer to XREADGROUP, in RESP2 or RESP3."""
    if not answer:
        return []
    return _offers(answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0])


def _offers(entries: Any) -> list[Offer]:
    return [(entry, RunId(UUID(fields[b"r"].decode()))) for entry, fields in entries or () if fields]
