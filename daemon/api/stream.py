"""A run's events as SSE: replay from the log, ``replay.done``, then live; every event once, in order, its seq as id.

The stream subscribes before it reads the log, so nothing falls between. Live messages that do not follow on what was
sent are not trusted: the log is read instead. Slow clients are cut off; they resume by Last-Event-ID.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

import orjson
from aiohttp import web
from pydantic import ConfigDict, Field

from daemon import telemetry
from daemon.api.context import CALLER, CONTEXT, Context
from daemon.api.feed import Watcher
from daemon.api.intake import Headers, Query, Whole
from daemon.api.runs import RunPath, seen_head
from daemon.api.watches import right_of
from daemon.auth.service_tokens import token_id_of
from daemon.errors import StoreUnavailable, WorldError
from daemon.machine.commands import RunId

RETRY_MS = 2000
SUBSCRIBED_WITHIN_S = 2.0
"""How long to wait for the bus before the replay; after that the heartbeats' comparison repairs what is missed."""
WRITE_TIMEOUT_S = 30.0
HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


class TooManyClients(WorldError):
    """This node serves as many event streams as it may; try another or come back."""

    code = "too_many_streams"


class EventsQuery(Query):
    """v0's query: what it does not know is ignored, as v0 did."""

    model_config = ConfigDict(extra="ignore")

    after_seq: Whole = Field(0, description="Replay what came after this seq.")
    limit: Whole | None = Field(None, description="Page size of the replay; it never truncates it.")
    ticket: str | None = Field(None, description="Of `POST …/events-ticket`, instead of the Authorization header.")


class Resuming(Headers):
    last_event_id: Whole | None = Field(
        None, alias="Last-Event-ID", description="The seq of the last event that was seen; wins over `after_seq`."
    )


async def events(request: web.Request, path: RunPath, query: EventsQuery, headers: Resuming) -> web.StreamResponse:
    """The run's events, live. 204 when ``Last-Event-ID`` is the end of a finished run, so that EventSource stops."""
    context, resumed = request.app[CONTEXT], headers.last_event_id
    head = await seen_head(request, path.run_id)
    after = query.after_seq if resumed is None else resumed
    most = context.settings.sse_page
    limit = most if query.limit is None else max(1, min(query.limit, most))
    if resumed is not None and head.terminal and after >= head.last_seq:
        return web.Response(status=204)
    if resumed is not None and after > head.last_seq:
        after = 0  # it saw what Postgres has lost since; other events will have those numbers, so it sees all again
    if context.feed.clients >= context.settings.sse_clients:
        raise TooManyClients
    async with context.feed.watch(head.id) as watcher:
        response = web.StreamResponse(headers=HEADERS)
        stream = _Stream(context, head.id, response, watcher, after=after, limit=limit)
        stream.ends_at = request[CALLER].expires_at
        watcher.token, watcher.key = token_id_of(request[CALLER].via), request[CALLER].key
        watcher.asked = right_of(head, request[CALLER])
        with contextlib.suppress(ConnectionError, TimeoutError, StoreUnavailable):
            await response.prepare(request)
            await stream.run(finished=head.terminal)
    return response


class _Stream:
    """One client's stream."""

    def __init__(
        self,
        context: Context,
        run_id: RunId,
        response: web.StreamResponse,
        watcher: Watcher,
        *,
        after: int,
        limit: int,
    ) -> None:
        self._context = context
        self._run_id = run_id
        self._response = response
        self._watcher = watcher
        self._sent = after
        self._limit = limit
        self._close_at: float | None = None
        self.ends_at: int | None = None
        """Epoch seconds; a stream ends with its caller's token."""

    async def run(self, *, finished: bool) -> None:
        """Replay, then live, until the run is over, the client is gone or too slow, or the node leaves."""
        await self._write(b"retry: %d\n\n" % RETRY_MS)
        with contextlib.suppress(TimeoutError):
            await self._watcher.next(SUBSCRIBED_WITHIN_S)
        await self._catch_up()
        if not self._ended:
            await self._replayed()
        if finished:
            self._end_soon()
        while not self._over():
            await self._live()
        if self._watcher.closed:
            await self._write(b"retry: 500\n\n")

    async def _replayed(self) -> None:
        done = {"type": "replay.done", "run_id": str(self._run_id), "after_seq": self._sent}
        await self._write(b"event: replay.done\ndata: %s\n\n" % orjson.dumps(done))

    async def _live(self) -> None:
        """Pass on one message, or let a heartbeat go by."""
        beat_s = self._context.settings.sse_heartbeat_s
        try:
            told = await self._watcher.next(min(beat_s, self._left_s()))
        except TimeoutError:
            if self._close_at is None:
                await self._write(b": ping\n\n")
            return
        if self._ended:
            return
        if told is None:
            await self._catch_up()
        elif told.first_seq == self._sent + 1 <= told.last_seq:
            await self._write(told.frames)
            self._advance(told.last_seq)
        elif told.last_seq > self._sent:
            await self._catch_up()
        if told is not None and told.terminal:
            self._end_soon()

    async def _catch_up(self) -> None:
        """Everything in the log after what was sent, as long as the stream may go on."""
        while not self._ended:
            page = await self._context.log.page(self._run_id, after_seq=self._sent, limit=self._limit)
            if page.count:
                await self._write(page.frames)
                self._advance(page.last_seq)
            if page.terminal:
                self._end_soon()
            if page.count < self._limit:
                return

    def _advance(self, seq: int) -> None:
        self._sent = self._watcher.seen = seq

    def _end_soon(self) -> None:
        if self._close_at is None:
            self._close_at = time.monotonic() + self._context.settings.sse_close_s

    def _left_s(self) -> float:
        """Until the stream ends with its run or with its caller's token, whichever is first."""
        left = [] if self._close_at is None else [self._close_at - time.monotonic()]
        left += [] if self.ends_at is None else [self.ends_at - time.time()]
        return max(0.01, min(left, default=math.inf))

    @property
    def _ended(self) -> bool:
        """Whether nothing more may be told: the token or the right has ended, or the node leaves."""
        return self._watcher.closed or (self.ends_at is not None and time.time() >= self.ends_at)

    def _over(self) -> bool:
        if self._watcher.overrun:
            telemetry.sse_cut.inc()
            return True
        return self._ended or (self._close_at is not None and time.monotonic() >= self._close_at)

    async def _write(self, data: bytes) -> None:
        async with asyncio.timeout(WRITE_TIMEOUT_S):
            await self._response.write(data)
