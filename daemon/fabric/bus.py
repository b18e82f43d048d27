"""The bus: what was committed just now, told to whoever watches the run. Hints only: the log is the truth.

Published by ``runtime/telling`` and heard by ``api/feed``. One subscription connection a node, whatever the number of
watchers. A message is a packed ``Told``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from daemon.fabric.client import Client, speaking
from daemon.fabric.keys import Keys
from daemon.machine.commands import RunId
from daemon.machine.record import Told
from daemon.telemetry import log

RETRY_S = 0.5


@contextmanager
def _only_a_hint() -> Iterator[None]:
    """Around what may fail in any manner: redis-py has many while its connection breaks (RedisError, uvloop's
    RuntimeError, an AttributeError between two tasks). ``run`` notices too, and subscribes to all that is wanted.
    """
    try:
        yield
    except Exception as fault:  # noqa: BLE001 - see above; whoever watches reads the log at the next heartbeat
        log.debug("the bus was not asked", fault=str(fault))


class Publisher:
    """This node's voice."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._line = client.line
        self._keys = keys

    async def publish(self, said: Sequence[tuple[RunId, Told]]) -> list[int]:
        """Tell these in order, in one round trip; how many nodes heard each. Raises FabricUnavailable."""
        with speaking():
            return await self._line.ask(*[("PUBLISH", self._keys.events(run_id), told.pack()) for run_id, told in said])


class Bus:
    """This node's ear. ``watch`` and ``unwatch`` runs; ``run`` hears until cancelled and outlives lost connections."""

    def __init__(self, client: Client, keys: Keys, *, node: str) -> None:
        self._keys = keys
        self._own = f"{keys.root}bus:{node}"
        self._pubsub = client.patient.pubsub()
        self._wanted: set[UUID] = set()
        self._order = asyncio.Lock()
        """Keeps SUBSCRIBE and UNSUBSCRIBE on the wire in the order of the wishes."""
        self._up = asyncio.Event()

    async def watch(self, run_ids: Sequence[UUID]) -> None:
        """Hear of these runs from now on. On return the subscription was asked for; Redis answers in order."""
        self._wanted.update(run_ids)
        async with self._order:
            if not self._up.is_set():
                return
            with _only_a_hint():
                await self._pubsub.subscribe(*[self._keys.events(run_id) for run_id in run_ids])

    async def unwatch(self, run_id: UUID) -> None:
        """Stop hearing of a run, unless somebody wishes to hear of it again by now."""
        self._wanted.discard(run_id)
        async with self._order:
            if not self._up.is_set() or run_id in self._wanted:
                return
            with _only_a_hint():
                await self._pubsub.unsubscribe(self._keys.events(run_id))

    async def run(self, heard: Callable[[UUID, Told | None], None]) -> None:
        """Hand every message to ``heard(run, told)``; ``None`` means "subscribed just now: look at the log".

        The confirmation of each subscription arrives as such a None, so a watcher that reads the log on it has no gap.
        """
        while True:
            try:
                with speaking():
                    async with self._order:
                        channels = [self._keys.events(run_id) for run_id in self._wanted]
                        await self._pubsub.subscribe(self._own, *channels)
                        self._up.set()
                    async for message in self._pubsub.listen():
                        self._deliver(message, heard)
            except Exception as fault:  # noqa: BLE001 - whatever broke the ear, it must hear again
                log.warning("the bus lost Redis", fault=str(fault))
            self._up.clear()
            with _only_a_hint():
                await self._pubsub.aclose()  # type: ignore[no-untyped-call] # redis-py leaves it untyped
            await asyncio.sleep(RETRY_S)

    def _deliver(self, message: dict[str, object], heard: Callable[[UUID, Told | None], None]) -> None:
        channel = message["channel"]
        run_id = self._keys.run_of_channel(channel.decode() if isinstance(channel, bytes) else str(channel))
        if run_id is None:
            return
        if message["type"] == "message" and isinstance(message["data"], bytes):
            heard(run_id, Told.unpack(message["data"]))
        elif message["type"] == "subscribe":
            heard(run_id, None)
