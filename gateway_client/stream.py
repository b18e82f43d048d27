"""The Gateway's event stream: Server-Sent Events in, batches of envelopes out.

`GatewayClient.events()` makes the streams; whoever needs events iterates over them. A stream never reconnects by
itself and never promises completeness: the Gateway replays nothing and drops silently when its buffer overflows, so
what must not be missed has to be inquired elsewhere.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from gateway_client.errors import GatewayError, NotSent, Unavailable, fault_of_read
from gateway_client.models import Envelope

MAX_FRAME_BYTES: Final = 4 * 1024 * 1024
_SOCKET_BUFFER_BYTES: Final = 1024 * 1024
_READS_AHEAD: Final = 16
_ERROR_BODY_BYTES: Final = 4096
_ENVELOPE: Final = b"event: bridge\ndata: "
_MARK: Final = b"\xef\xbb\xbf"
"""A byte order mark: one before the stream is no part of it (HTML §9.2.5)."""


def unreachable(fault: Exception, *, during: str) -> GatewayError:
    """What a failed connection or a broken answer means for a read."""
    if isinstance(fault, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return NotSent("gateway_unavailable", str(fault))
    return Unavailable("connection_lost", f"{during}: {fault or type(fault).__name__}")


class FrameReader:
    """Cuts a byte stream into SSE frames, wherever it was split, and parses those that hold envelopes.

    `ready` tells whether the `ready` frame was seen. `dropped` counts frames over the size limit, `malformed` those
    that should have held an envelope and did not.
    """

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.ready = False
        self.dropped = 0
        self.malformed = 0
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._begun = False  # past the place of a byte order mark
        self._half_line_end = b""  # a CR at the end of a read: its LF may follow in the next one
        self._skipping = False  # inside a frame that was dropped, until the next blank line

    def feed(self, data: bytes) -> list[Envelope]:
        """All envelopes that are complete with these bytes, in order."""
        data = self._with_plain_line_ends(data if self._begun else self._past_the_mark(data))
        scan_from = max(len(self._buffer) - 1, 0)
        self._buffer += data
        end = self._buffer.rfind(b"\n\n", scan_from)
        if end < 0:
            self._bound()
            return []
        frames = bytes(self._buffer[:end]).split(b"\n\n")
        del self._buffer[: end + 2]
        if self._skipping:
            self._skipping = False
            del frames[0]
        envelopes = [envelope for frame in frames if (envelope := self._read(frame)) is not None]
        self._bound()
        return envelopes

    def _past_the_mark(self, data: bytes) -> bytes:
        """What follows the mark; the buffer keeps what may be the beginning of one."""
        data = bytes(self._buffer) + data
        self._buffer.clear()
        if len(data) < len(_MARK) and _MARK.startswith(data):
            self._buffer += data
            return b""
        self._begun = True
        return data.removeprefix(_MARK)

    def _with_plain_line_ends(self, data: bytes) -> bytes:
        data = self._half_line_end + data
        if b"\r" not in data:
            self._half_line_end = b""
            return data
        self._half_line_end = data[-1:] if data.endswith(b"\r") else b""
        whole = data[: len(data) - len(self._half_line_end)]
        return whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _bound(self) -> None:
        """Forgets an unfinished frame that is already too large; a line feed at either end may be a separator's."""
        if not self._skipping and len(self._buffer) > self._max_frame_bytes + 2:
            self._skipping = True
            self.dropped += 1
        if self._skipping:
            del self._buffer[:-1]

    def _read(self, frame: bytes) -> Envelope | None:
        if len(frame) > self._max_frame_bytes:
            frame = frame.strip(b"\n")
            if len(frame) > self._max_frame_bytes:
                self.dropped += 1
                return None
        if frame.startswith(_ENVELOPE) and frame.find(b"\n", len(_ENVELOPE)) < 0:  # as nearly all are
            envelope = Envelope.parse(frame[len(_ENVELOPE) :])
            self.malformed += envelope is None
            return envelope
        event, data = b"", []
        for line in frame.strip(b"\n").split(b"\n"):
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                event = value.removeprefix(b" ")
        if event == b"ready":
            self.ready = True
        if event != b"bridge":
            return None
        envelope = Envelope.parse(b"\n".join(data))
        self.malformed += envelope is None
        return envelope


class EventStream:
    """One subscription. Entering connects and waits for `ready`: from then on no event passes unseen.

    Iterating gives one non-empty list per wake-up: every envelope of every read that has come in since the last one.
    One reader only. The iteration ends when the Gateway ends the stream, also when it dies without a last chunk;
    `Unavailable` tells of resets, broken framing and silence.
    """

    def __init__(
        self,
        session: Callable[[], aiohttp.ClientSession],
        url: URL,
        *,
        connect_timeout_s: float,
        silence_timeout_s: float,
    ) -> None:
        self._session = session
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s)
        self._silence_timeout_s = silence_timeout_s
        self._frames = FrameReader()
        self._early: list[Envelope] = []
        self._reads: asyncio.Queue[bytes] = asyncio.Queue(_READS_AHEAD)
        self._over = False  # nothing more will be put into _reads
        self._fault: Unavailable | None = None  # why it is over, when that is not simply the end
        self._response: aiohttp.ClientResponse | None = None
        self._pump: asyncio.Task[None] | None = None

    @property
    def dropped(self) -> int:
        """Frames dropped because they were over the size limit."""
        return self._frames.dropped

    @property
    def malformed(self) -> int:
        """Frames that should have held an envelope and did not."""
        return self._frames.malformed

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._silence_timeout_s):
                self._response = await self._subscribe()
                self._pump = asyncio.create_task(self._read_ahead(self._response), name="gateway-events")
                await self._await_ready()
        except TimeoutError:
            await self._close()
            raise Unavailable("silent", f"not ready within {self._silence_timeout_s} s") from None
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Envelope]:
        batch, self._early = self._early, []
        while not batch:
            try:
                async with asyncio.timeout(self._silence_timeout_s):
                    read = await self._next_reads()
            except TimeoutError:
                self._fault = Unavailable("silent", f"no byte, no heartbeat for {self._silence_timeout_s} s")
                await self._close()
                raise self._fault from None
            if not read:
                raise self._fault or StopAsyncIteration
            batch = self._frames.feed(read)
        return batch

    async def _subscribe(self) -> aiohttp.ClientResponse:
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        try:
            response = await self._session().get(
                self._url,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
                read_bufsize=_SOCKET_BUFFER_BYTES,
            )
            if response.status == 200 and response.content_type == "text/event-stream":
                return response
            async with response:
                body = await response.content.read(_ERROR_BODY_BYTES)
        except (aiohttp.ClientError, OSError) as fault:
            raise unreachable(fault, during="subscribing to events") from fault
        if response.status == 200:
            raise NotSent("bad_gateway_url", f"{response.content_type} is no event stream")
        raise fault_of_read(response.status, body)

    async def _await_ready(self) -> None:
        while not self._frames.ready:
            if not (read := await self._next_reads()):
                raise self._fault or Unavailable("connection_lost", "the stream ended before it was ready")
            self._early += self._frames.feed(read)

    async def _read_ahead(self, response: aiohttp.ClientResponse) -> None:
        """Empties aiohttp's buffer at once, because aiohttp forgets what it still holds when a connection breaks.

        So the last events before an end are seen by a consumer that was busy elsewhere, too.
        """
        protocol = response.connection.protocol if response.connection else None
        try:
            async for read in response.content.iter_any():
                await self._reads.put(read)
        except (aiohttp.ClientError, OSError) as fault:
            # A Gateway that exits sends no last chunk. aiohttp calls that an error; here it is how streams end.
            if protocol is None or not isinstance(protocol.exception(), aiohttp.ServerDisconnectedError):
                self._fault = Unavailable("connection_lost", f"reading events: {fault}")
        self._over = True
        await self._reads.put(b"")  # wakes the consumer

    async def _next_reads(self) -> bytes:
        """All that has come in since the last call, waiting for something if need be; empty when the stream is over."""
        if self._over and self._reads.empty():
            return b""
        reads = [await self._reads.get()]
        while not self._reads.empty():
            reads.append(self._reads.get_nowait())
        return b"".join(reads)

    async def _close(self) -> None:
        self._over = True
        if self._response is not None:
            self._response.close()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
