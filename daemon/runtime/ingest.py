"""Ingest: hears a Gateway's events and puts each into the inbox of the run it names. One holder a Gateway.

Used by ``node``. One read of the stream becomes one script call with many letters. Letters carry the holder's term and
a number, so that a repeated append is known for what it is. The stream has no replay: after every gap ``missed`` is
called, and attempts in flight are inquired.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from daemon import telemetry
from daemon.errors import FabricUnavailable
from daemon.fabric.inbox import Inbox, Post
from daemon.fabric.lease import Singleton
from daemon.machine.commands import Mark, Urgency
from daemon.machine.state import run_of
from daemon.telemetry import log
from gateway_client import Envelope, GatewayClient, GatewayError

URGENCY: dict[str, Urgency] = {"INVOKE_ACK": "s", "CHUNK": "s", "RESULT": "h", "CANCEL_ACK": "h"}
"""The envelopes that concern a run. An INVOKE_ACK that says no is followed by nothing, so it must be heard at once."""
RETRY_MAX_S = 15.0


class Ingest:
    """The ear of this node for one Gateway. ``subscribed`` is true while its events reach some node's inboxes."""

    def __init__(
        self,
        *,
        client: GatewayClient,
        inbox: Inbox,
        role: Singleton,
        ttl_s: float,
        retry_s: float,
        missed: Callable[[], None],
    ) -> None:
        self._client = client
        self._inbox = inbox
        self._role = role
        self._hold_s = ttl_s / 3
        self._retry_s = retry_s
        self._missed = missed
        self._number = 0
        self._open = False
        self._another_holds = False

    @property
    def subscribed(self) -> bool:
        return self._open or self._another_holds

    async def run(self) -> None:
        """Hold the role and listen, or stand by; until cancelled."""
        try:
            while True:
                if await self._hold():
                    await self._while_holder()
                await asyncio.sleep(self._hold_s)
        finally:
            self._set_open(False)

    async def leave(self) -> None:
        """Give the role to another node at once; part of a drain."""
        try:
            await self._role.leave()
        except FabricUnavailable as fault:
            log.warning("the ingest role was not given back, it will run out", fault=str(fault))

    async def _hold(self) -> bool:
        try:
            held = await self._role.hold()
        except FabricUnavailable as fault:
            log.warning("ingest waits for Redis", fault=str(fault))
            return False
        self._another_holds = not held
        return held

    async def _while_holder(self) -> None:
        listening = asyncio.create_task(self._listen(), name="ingest-listen")
        try:
            while not listening.done():
                await asyncio.wait({listening}, timeout=self._hold_s)
                if not await self._hold() and self._another_holds:
                    log.warning("another node took the ingest role")
                    return
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            self._set_open(False)

    async def _listen(self) -> None:
        """Open the stream again for ever; waits grow while the Gateway is away."""
        pause_s = self._retry_s
        while True:
            try:
                async with self._client.events() as stream:
                    self._set_open(True)
                    self._missed()
                    pause_s = self._retry_s
                    log.info("hearing the Gateway")
                    async for envelopes in stream:
                        await self._deliver(envelopes)
                log.warning("the Gateway ended its event stream")
            except GatewayError as fault:
                log.warning("the Gateway is not heard", fault=str(fault), again_in_s=pause_s)
            self._set_open(False)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)

    async def _deliver(self, envelopes: Sequence[Envelope]) -> None:
        posts: list[Post] = []
        for envelope in envelopes:
            telemetry.ingest_envelopes.labels(envelope.type if envelope.type in URGENCY else "other").inc()
            urgency = URGENCY.get(envelope.type)
            if urgency is None:
                continue
            run_id = run_of(envelope.req_id)
            if run_id is None:
                telemetry.ingest_dropped.inc()
                continue
            if envelope.type == "INVOKE_ACK" and envelope.payload.get("accepted") is not True:
                urgency = "h"
            self._number += 1
            posts.append(Post(run_id, urgency, envelope.raw, Mark(self._role.term, self._number)))
        while posts:
            try:
                await self._inbox.append(posts)
            except FabricUnavailable as fault:
                log.warning("letters wait for Redis", letters=len(posts), fault=str(fault))
                await asyncio.sleep(self._retry_s)
            else:
                return

    def _set_open(self, is_open: bool) -> None:
        self._open = is_open
        telemetry.gateway_subscribed.set(1 if is_open else 0)
