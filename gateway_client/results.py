"""Stored RESULTs of many calls at once, as cheaply as they can be had: for whoever looks though nobody spoke.

`gateways` makes it, and hands it out. One that asks about a single call and must know asks `Gateways.result`; here
everything is bounded, by time and by connections, and what could not be learnt is simply not in the answer.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from gateway_client.client import GatewayClient
from gateway_client.errors import GatewayError, ResultsUnsupported, Unavailable
from gateway_client.models import Envelope
from gateway_client.registry import GatewayRedis

AT_A_TIME: Final = 8
"""Questions to the Gateways under way."""
UNSUPPORTED_S: Final = 60.0
"""A Gateway that stores no results is not asked again for so long: it may have been given a store."""


class Results:
    """The result stores of all Gateways."""

    def __init__(self, clients: Mapping[str, GatewayClient], redis: GatewayRedis | None) -> None:
        self._clients = clients
        self._redis = redis
        self._without: dict[str, float] = {}
        """When (loop time) a Gateway that stores no results is asked again."""

    async def of(self, req_ids: Sequence[str], *, within_s: float) -> dict[str, Envelope | None]:
        """By call: its stored RESULT, or None when nobody has one (yet). Never raises for a Gateway's sake.

        Calls are missing from it of which somebody who may have the RESULT could not be asked in time.
        """
        found: dict[str, Envelope | None] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                if self._redis is not None:
                    with suppress(Unavailable):  # a Gateway may have a better connection to it
                        return await self._redis.results(req_ids)
                waiting, away = deque(req_ids), set[str]()
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(AT_A_TIME, len(waiting))):
                        group.create_task(self._ask(waiting, away, found))
        return found

    async def _ask(self, waiting: deque[str], away: set[str], found: dict[str, Envelope | None]) -> None:
        """Ask about one call after the other; a Gateway that is `away` is not asked about the rest."""
        while waiting:
            req_id = waiting.popleft()
            known, stored = await self._glance(req_id, away)
            if known:
                found[req_id] = stored

    async def _glance(self, req_id: str, away: set[str]) -> tuple[bool, Envelope | None]:
        """Whether it is known what the stores have of this call, and that."""
        silent, asked = False, False
        for name, client in self._clients.items():
            if name in away:
                silent = True
                continue
            if self._without.get(name, 0.0) > asyncio.get_running_loop().time():
                continue
            try:
                stored = await client.glance(req_id)
            except ResultsUnsupported:
                self._without[name] = asyncio.get_running_loop().time() + UNSUPPORTED_S
            except GatewayError as fault:
                silent = True
                if fault.code != "bad_answer":  # that is this call's own
                    away.add(name)
            else:
                if stored is not None:
                    return True, stored
                asked = True
        # With a Redis of their own the Gateways share one store, so one that answers speaks for all.
        return not silent or (asked and self._redis is not None), None
