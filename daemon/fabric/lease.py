"""Leases: who tries to own a run. A courtesy; the fence in Postgres is the law.

Used by ``runtime/ownership`` through ``ports.Leases``, and by the sweep. A lease's value is ``<owner token>|<epoch>``,
the owner token ``<node>/<nonce>``; the epoch is 0 between the taking and the claim in Postgres.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from daemon.fabric.client import Client, speaking
from daemon.fabric.keys import Keys
from daemon.machine.commands import Epoch, RunId

CHUNK = 500
"""Leases in one script call, so that no call blocks the server for long."""

Renewal = Literal["r", "t", "l"]
Release = Literal["r", "w", "l"]


class Leases:
    """The leases of runs."""

    def __init__(self, client: Client, keys: Keys, *, ttl_s: float) -> None:
        self._client = client
        self._keys = keys
        self._ttl_ms = int(ttl_s * 1000)
        self._renew = client.script("renew")
        self._seal = client.script("seal")
        self._release = client.script("release")

    async def take(self, wanted: Mapping[RunId, str]) -> set[RunId]:
        """Try to take leases (run → owner token); answers those taken."""
        with speaking():
            async with self._client.redis.pipeline(transaction=False) as pipe:
                for run_id, owner in wanted.items():
                    pipe.set(self._keys.lease(run_id), f"{owner}|0", nx=True, px=self._ttl_ms)
                answers = await pipe.execute()
        return {run_id for run_id, answer in zip(wanted, answers, strict=True) if answer}

    async def seal(self, claimed: Sequence[tuple[RunId, str, Epoch]]) -> set[RunId]:
        """Write the epochs of fresh claims into their leases; answers those still ours."""
        ours: set[RunId] = set()
        for part in _parts(claimed):
            keys = [self._keys.lease(run_id) for run_id, _, _ in part]
            args: list[Any] = [self._ttl_ms]
            for _, owner, epoch in part:
                args += (f"{owner}|0", f"{owner}|{epoch}")
            with speaking():
                answers = await self._seal(keys=keys, args=args)
            ours |= {one[0] for one, sealed in zip(part, answers, strict=True) if sealed}
        return ours

    async def renew(self, held: Sequence[tuple[RunId, str, Epoch]]) -> dict[RunId, Renewal]:
        """Renew leases: r renewed, t taken again (it was missing), l lost to another."""
        found: dict[RunId, Renewal] = {}
        for part in _parts(held):
            keys = [self._keys.lease(run_id) for run_id, _, _ in part]
            args: list[Any] = [self._ttl_ms, *(f"{owner}|{epoch}" for _, owner, epoch in part)]
            with speaking():
                answers = await self._renew(keys=keys, args=args)
            found |= {one[0]: answer.decode() for one, answer in zip(part, answers, strict=True)}
        return found

    async def release(self, held: Sequence[tuple[RunId, str, Epoch]], *, force: bool = False) -> dict[RunId, Release]:
        """Let leases go: r released, w refused because letters wait, l lost already. ``force`` marks the runs ready."""
        found: dict[RunId, Release] = {}
        for part in _parts(held):
            keys = [self._keys.ready]
            args: list[Any] = [int(force)]
            for run_id, owner, epoch in part:
                keys += (self._keys.lease(run_id), self._keys.inbox(run_id))
                args += (f"{owner}|{epoch}", run_id.hex)
            with speaking():
                answers = await self._release(keys=keys, args=args)
            found |= {one[0]: answer.decode() for one, answer in zip(part, answers, strict=True)}
        return found

    async def missing(self, run_ids: Sequence[RunId]) -> list[RunId]:
        """Those of the runs that nobody holds a lease on."""
        if not run_ids:
            return []
        with speaking():
            holders = await self._client.redis.mget([self._keys.lease(run_id) for run_id in run_ids])
        return [run_id for run_id, holder in zip(run_ids, holders, strict=True) if holder is None]


def _parts(items: Sequence[tuple[RunId, str, Epoch]]) -> Iterable[Sequence[tuple[RunId, str, Epoch]]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
