"""Ingest: hears a Gateway's events and puts each into the inbox of the run it names.

``hearing`` has one for each Gateway and one for the Gateways' Redis. Of all nodes one is the holder and appends; where
there is a second it is the standby: it hears the same and remembers the last 30 s of ACKs and RESULTs, which it appends
when it takes over. Letters carry the holder's term and a number, so that a repeated append is known for what it is. The
source itself has no replay: after a gap ``missed`` is called, and attempts in flight are inquired. So they are when a
standby takes over: nobody can tell how long the former holder had been deaf, or dead, when the standby began to hear.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal

from daemon import telemetry
from daemon.errors import FabricUnavailable
from daemon.fabric.inbox import Inbox, Post
from daemon.fabric.role import Beacon, Role
from daemon.machine.commands import IN_MEMORY, Entry, Letter, Mark, RunId, Urgency
from daemon.machine.state import run_of
from daemon.machine.wire import letter_of
from daemon.runtime.memory import Memory
from daemon.telemetry import log
from gateway_client import Envelope, GatewayError

URGENCY: Mapping[str, Urgency] = {"INVOKE_ACK": "s", "CHUNK": "s", "RESULT": "h", "CANCEL_ACK": "h"}
"""The envelopes that concern a run. An INVOKE_ACK that says no is followed by nothing, so it must be heard at once."""
MOVES = frozenset({"TOOLS", "DISCONNECT", "INVOKE_FAILED"})
"""The envelopes that say that an agent may be elsewhere than we think."""
KNOWN = MOVES | URGENCY.keys()
REMEMBERED = frozenset({"INVOKE_ACK", "RESULT", "CANCEL_ACK"})
RETRY_MAX_S = 5.0
LOOK_S = 0.5
"""Between two looks at the roles: a leaving holder is followed within this."""
HAND_OVER_S = 2.0
"""How long a leaving holder waits for a standby that hears."""

Part = Literal["holder", "standby", "none"]
Source = Callable[[], AbstractAsyncContextManager[AsyncIterable[Sequence[Envelope]]]]
"""Opens a stream of events: entered, nothing passes unseen; it ends, or raises GatewayError."""


class Ingest:
    """One ear of this node. ``gateway`` names what it hears; ``takes`` is what it makes letters of, how urgent."""

    def __init__(
        self,
        *,
        gateway: str,
        source: Source,
        takes: Mapping[str, Urgency],
        inbox: Inbox,
        hand: Callable[[str, Urgency, Entry], bool],
        ring: Callable[[RunId, Urgency], object],
        holder: Role,
        standby: Role,
        heard: Beacon,
        standby_hears: Beacon,
        ttl_s: float,
        retry_s: float,
        missed: Callable[[], None],
        unsure: Callable[[], None],
        moved: Callable[[str], None],
        returned: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._source = source
        self._takes = takes
        self._inbox = inbox
        self._hand = hand
        self._ring = ring
        self._holder = holder
        self._standby = standby
        self._heard = heard
        self._standby_hears = standby_hears
        self._look_s = min(LOOK_S, ttl_s / 4)
        self._retry_s = retry_s
        self._missed = missed
        self._unsure = unsure
        self._moved = moved
        self._returned = returned
        self._heard_word: bytes | None = None
        self._memory = Memory(time.monotonic)
        self._part: Part = "none"
        self._term = 0
        """Of the last time this node became the holder; a leaving one goes on under it until its successor hears."""
        self._number = 0
        self._open = False
        self._somebody_hears = False
        self._leaving = False

    @property
    def subscribed(self) -> bool:
        """Whether the Gateway's events reach the inboxes, by this node or another. Without it nothing is intended."""
        return (self._open and self._part == "holder") or self._somebody_hears

    async def run(self) -> None:
        """Take the part that is free, and listen; until cancelled."""
        listening: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    await self._take_part()
                    await self._tell()
                except FabricUnavailable as fault:
                    log.warning("ingest waits for Redis", fault=str(fault))
                if self._part != "none" and listening is None:
                    listening = asyncio.create_task(self._listen(), name="ingest-listen")
                elif self._part == "none" and listening is not None:
                    await _end(listening)
                    listening = None
                    self._set_open(False)
                if listening is not None and listening.done():
                    listening.result()
                await asyncio.sleep(self._look_s)
        finally:
            if listening is not None:
                await _end(listening)
            self._set_open(False)

    async def leave(self) -> None:
        """Part of a drain: stop only once a standby hears (or there is none), so that no RESULT falls between."""
        self._leaving = True
        try:
            if self._part == "holder":
                await self._holder.leave()
                await self._await_successor()
            else:
                await self._standby.leave()
        except FabricUnavailable as fault:
            log.warning("the ingest role was not given back, it will run out", fault=str(fault))

    async def _await_successor(self) -> None:
        """Go on appending until the standby has taken over (its repeats are harmless), or as long as is sensible."""
        until = time.monotonic() + HAND_OVER_S
        while time.monotonic() < until:
            if not await self._standby_hears.seen() or await self._holder.taken():
                return
            await asyncio.sleep(self._look_s / 5)

    async def _take_part(self) -> None:
        if self._leaving:
            return
        if await self._holder.hold():
            if self._part != "holder":
                await self._become_holder()
        else:
            self._part = "standby" if await self._standby.hold() else "none"

    async def _become_holder(self) -> None:
        was = self._part
        self._part, self._term = "holder", self._holder.term
        if was == "standby":
            recalled = self._memory.recall()
            log.info("took over the ingest", gateway=self._gateway, recalled=len(recalled))
            await self._append(recalled)
            if self._open:  # the former holder may have been deaf, or dead, before this node began to hear
                self._missed()
            await self._standby_hears.douse()
            await self._standby.leave()

    async def _tell(self) -> None:
        """Let the other nodes know who hears."""
        if self._leaving:
            return
        if self._open and self._part == "holder":
            await self._heard.shine()
            self._somebody_hears = True
            return
        if self._open and self._part == "standby":
            await self._standby_hears.shine()
        word = await self._heard.word()
        self._somebody_hears = word is not None
        if word is not None and word != self._heard_word:
            if self._heard_word is not None:  # whoever hears now did not all the time: results may have gone by
                self._unsure()
            self._heard_word = word

    async def _listen(self) -> None:
        """Open the stream again for ever; waits grow while the Gateway is away."""
        pause_s = self._retry_s
        while True:
            try:
                async with self._source() as stream:
                    self._set_open(True)
                    self._heard.begin_anew()
                    await self._tell_now()
                    if self._part == "holder":  # while a standby was deaf, the holder heard
                        self._missed()
                    pause_s = self._retry_s
                    log.info("hearing the Gateway", gateway=self._gateway, part=self._part)
                    async for envelopes in stream:
                        await self._deliver(envelopes)
                log.warning("the Gateway ended its event stream", gateway=self._gateway)
            except GatewayError as fault:
                log.warning("the Gateway is not heard", gateway=self._gateway, fault=str(fault), again_in_s=pause_s)
            was_holder = self._part == "holder"
            self._set_open(False)
            if was_holder:
                self._somebody_hears = False
                with contextlib.suppress(FabricUnavailable):  # it runs out by itself
                    await self._heard.douse()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)

    async def _tell_now(self) -> None:
        try:
            await self._tell()
        except FabricUnavailable as fault:
            log.warning("nobody can be told that the Gateway is heard", fault=str(fault))

    async def _deliver(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in envelopes:
            kind = envelope.type if envelope.type in KNOWN else "other"
            telemetry.ingest_envelopes.labels(self._gateway, kind).inc()
            if kind not in MOVES:
                continue
            self._moved(envelope.agent_id)
            if kind == "TOOLS":
                self._returned(envelope.agent_id)
            elif kind == "INVOKE_FAILED":
                self._note_failed(envelope)
        if self._part == "standby":
            self._memory.keep(envelope for envelope in envelopes if envelope.type in REMEMBERED)
            return
        await self._append(envelopes)

    def _note_failed(self, envelope: Envelope) -> None:
        """A command that somebody put into ``bridge:cmd`` found no agent. It says nothing about our call.

        Our calls go by HTTP, so the command was not ours, whatever ``req_id`` it names (it may have been a CANCEL, or a
        second INVOKE of a call that runs), and anybody may publish there. Taken for a proof of "not sent" it would let
        a tool run twice. So it is counted and logged, the agent is looked for anew, and the attempt waits as before.
        """
        if run_of(envelope.req_id) is not None:
            telemetry.invoke_failed.inc()
            log.info("INVOKE_FAILED about a call of ours", req_id=envelope.req_id, agent_id=envelope.agent_id)

    async def _append(self, envelopes: Sequence[Envelope]) -> None:
        """All letters of one read: to the runs that live here, the others in one call, repeated until Redis has them.

        A run may have moved in here meanwhile: it shall read its inbox before it hears what comes next, or the lines
        of a log would be out of order.
        """
        others: list[Post] = []
        for envelope in envelopes:
            urgency = self._takes.get(envelope.type)
            if urgency is None:
                continue
            if envelope.type == "INVOKE_ACK" and envelope.payload.get("accepted") is not True:
                urgency = "h"
            entry = self._entry(envelope)
            if self._hand(envelope.req_id, urgency, entry):
                continue
            run_id = run_of(envelope.req_id)
            if run_id is None:
                telemetry.ingest_dropped.inc()
            else:
                others.append(Post(run_id, urgency, entry.raw, entry.mark))
        while others:
            try:
                await self._inbox.append(others)
            except FabricUnavailable as fault:
                log.warning("letters wait for Redis", letters=len(others), fault=str(fault))
                await asyncio.sleep(self._retry_s)
            else:
                break
        for post in others:
            self._ring(post.run_id, post.urgency)

    def _entry(self, envelope: Envelope) -> Entry:
        """The letter as its run will have it, read already."""
        self._number += 1
        mark = Mark(self._term, self._number)
        letter: Letter | None = None
        try:
            letter = letter_of(envelope.type, envelope.req_id, envelope.payload, envelope.raw, mark)
        except Exception as fault:  # noqa: BLE001 - its run will read it again, fail likewise and set it aside
            log.warning("a letter cannot be read", req_id=envelope.req_id, fault=str(fault))
        return Entry(IN_MEMORY, envelope.raw, mark, letter)

    def _set_open(self, is_open: bool) -> None:
        self._open = is_open
        telemetry.gateway_subscribed.labels(self._gateway).set(1 if is_open else 0)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
