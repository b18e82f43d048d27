"""The thin client for calls: keep-alive HTTP/1.1 POSTs over a bounded pool, honest about what was surely not sent.

Only `client` calls it. The promises, in the order in which a call meets them:

1. Before the write everything that fails is `NotSent`: no connection, a refused one, a `may_send` that says no.
2. A pooled connection that ended while it lay idle is seen before the write (the end-of-file flag, and a look at the
   socket for an end that the event loop has not noticed yet), and another one is taken.
3. `may_send` is asked with the connection in hand, and nothing is awaited between its yes and the write.
4. After the write began everything but a complete answer is `MaybeSent`. It never writes a request twice: the Gateway
   does not deduplicate.
5. It waits for the answer as long as the caller does: a caller that gives up closes the connection, which tears down
   the whole tunnel of a blocked agent. Only a peer whose TCP no longer answers, a minute long, ends the wait.
6. Such an agent holds no more than its share of the connections (`turnstile`); who waits for a place is `NotSent` when
   that takes too long.
"""

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from aiohappyeyeballs import start_connection

from gateway_client.errors import MaybeSent, NotSent
from gateway_client.http1 import Answer, AnswerReader, Endpoint, Malformed
from gateway_client.turnstile import Turnstile

# Proxies and NATs forget idle connections without a word after a minute or so; a write into one would wait for long.
IDLE_LIMIT_S: Final = 30.0
NEXT_ADDRESS_S: Final = 0.25
"""After this a host's next address is tried beside the one that says nothing (RFC 8305): one of two may be a hole."""

_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 30),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    # No probe is sent while something written is not acknowledged: without this the kernel repeats it for 15 minutes.
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 60_000),
)


class Connection(asyncio.Protocol):
    """One connection: at rest, or carrying exactly one request, or over."""

    _transport: asyncio.Transport  # set by connection_made, before anybody holds the connection

    def __init__(self, loop: asyncio.AbstractEventLoop, *, secure: bool) -> None:
        self._loop = loop
        self._secure = secure
        self._peek = select.poll()
        self._waiter: asyncio.Future[Answer | MaybeSent] | None = None
        self._reader = AnswerReader()
        self._over = False
        self.rested_at = 0.0  # monotonic, of the event loop
        self.lost: asyncio.Future[None] = loop.create_future()

    @property
    def at_rest(self) -> bool:
        """Nothing was written to it since its last complete answer, and its end was not noticed."""
        return self._waiter is None and not self._over

    def is_fresh(self, *, new: bool = False) -> bool:
        """Whether a request may be written: at rest, not for too long, nothing unread, not even its end.

        A new TLS connection may have session tickets to read, so there only the flags count.
        """
        if not self.at_rest or self._transport.is_closing() or self._loop.time() - self.rested_at > IDLE_LIMIT_S:
            return False
        return (new and self._secure) or not self._peek.poll(0)

    def send(self, request: bytes) -> asyncio.Future[Answer | MaybeSent]:
        """Writes now, synchronously. The future brings the answer, or what became of the connection instead."""
        self._waiter = self._loop.create_future()
        self._reader = AnswerReader()
        self._transport.write(request)
        return self._waiter

    def abort(self) -> None:
        """Closes at once; what is still unwritten is not written any more."""
        self._finish(MaybeSent("connection_lost", "the connection was closed on this side"))
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast(asyncio.Transport, transport)
        self.rested_at = self._loop.time()
        sock = transport.get_extra_info("socket")
        for level, option, value in _KEEPALIVE:
            if hasattr(socket, option):  # macOS has other names
                sock.setsockopt(level, getattr(socket, option), value)
        self._peek.register(sock.fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop. Bytes that nobody asked for make the connection worthless."""
        if self._waiter is None or self._over:
            self.abort()
            return
        try:
            answer = self._reader.feed(data)
        except Malformed as fault:
            self._finish(MaybeSent("connection_lost", f"the answer is not HTTP/1.1: {fault}"))
            self.abort()
            return
        if answer is None:
            return
        reusable = answer.keep_alive and self._transport.get_write_buffer_size() == 0
        self._finish(answer, over=not reusable)
        if not reusable:
            self._transport.abort()

    def eof_received(self) -> None:
        """Called by the event loop; the transport then closes by itself."""
        self._finish(self._reader.end() or MaybeSent("connection_lost", "the connection ended before the answer did"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._finish(MaybeSent("connection_lost", str(exc) if exc else "the connection ended before the answer did"))
        if not self.lost.done():
            self.lost.set_result(None)

    def _finish(self, outcome: Answer | MaybeSent, *, over: bool = True) -> None:
        """The first outcome of the request under way wins; `over` says whether the connection ends with it."""
        self._over = self._over or over
        waiter, self._waiter = self._waiter, None
        self.rested_at = self._loop.time()
        if waiter is not None and not waiter.done():
            waiter.set_result(outcome)


class Invoker:
    """A bounded pool of connections to one endpoint. The last one used is used first; callers queue in order."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tls: ssl.SSLContext | None,
        max_connections: int,
        per_agent: int | None,
        queue_timeout_s: float | None,
        connect_timeout_s: float,
        answer_timeout_s: float | None,
    ) -> None:
        self._endpoint = endpoint
        self._tls = tls
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        # A caller has its turn before it takes or makes a connection, and makes one only when none is idle: so the
        # turnstile bounds the connections in use and idle together.
        self._turnstile = Turnstile(in_all=max_connections, per_agent=per_agent, patience_s=queue_timeout_s)
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._closed = False

    async def post(self, request: bytes, agent_id: str, may_send: Callable[[], bool] | None = None) -> Answer:
        """Sends once and returns the complete answer; raises NotSent or MaybeSent."""
        await self._turnstile.enter(agent_id)
        try:
            connection = self._take_idle() or await self._connect()
            try:
                if may_send is not None and not may_send():
                    raise NotSent("not_permitted")
                return await self._answer(connection.send(request))
            finally:
                self._put_back(connection)
        finally:
            self._turnstile.leave(agent_id)

    def post_at_once(
        self, request: bytes, agent_id: str, may_send: Callable[[], bool], told: Callable[[Answer | MaybeSent], None]
    ) -> asyncio.Future[Answer | MaybeSent] | None:
        """As `post`, without a task, where nothing need be waited for before the write; else None, and nothing is done.

        `told` hears of the outcome once, when the future is done; who cancels the future gives the call up. Raises
        NotSent(not_permitted). It saves most of what a call costs, for nearly all calls find a place and a connection.
        """
        if self._answer_timeout_s is not None or not self._idle or not self._turnstile.enter_at_once(agent_id):
            return None
        connection, waiter = self._take_idle(), None

        def over(waiter: asyncio.Future[Answer | MaybeSent]) -> None:
            leave()
            gave_up = MaybeSent("connection_lost", "nobody waited for the answer any more")
            told(gave_up if waiter.cancelled() else waiter.result())

        def leave() -> None:
            if connection is not None:
                self._put_back(connection)
            self._turnstile.leave(agent_id)

        try:
            if connection is None:
                return None
            if not may_send():
                raise NotSent("not_permitted")
            waiter = connection.send(request)
            waiter.add_done_callback(over)
            return waiter
        finally:
            if waiter is None:
                leave()

    def begin_no_more(self) -> None:
        """Those who wait for a place are refused at once, and whoever comes later."""
        self._turnstile.shut()

    async def aclose(self) -> None:
        """Closes every connection; calls that still wait for an answer get MaybeSent."""
        self._closed = True
        self._idle.clear()
        connections = list(self._open)
        for connection in connections:
            connection.abort()
        await asyncio.gather(*(connection.lost for connection in connections))

    async def _answer(self, waiter: asyncio.Future[Answer | MaybeSent]) -> Answer:
        try:
            async with asyncio.timeout(self._answer_timeout_s):
                outcome = await waiter
        except TimeoutError:
            raise MaybeSent("connection_lost", f"no answer within {self._answer_timeout_s} s") from None
        if isinstance(outcome, MaybeSent):
            raise outcome
        return outcome

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh():
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        where = self._endpoint.authority
        if self._closed:
            raise NotSent("gateway_unavailable", "this client is closed")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                host = self._endpoint.host
                addresses = await loop.getaddrinfo(host, self._endpoint.port, type=socket.SOCK_STREAM)
                _, connection = await loop.create_connection(
                    lambda: Connection(loop, secure=self._endpoint.secure),
                    sock=await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1),
                    ssl=self._tls,
                    server_hostname=host if self._tls is not None else None,
                )
        except TimeoutError:
            raise NotSent("gateway_unavailable", f"no connection to {where} in {self._connect_timeout_s} s") from None
        except (OSError, UnicodeError) as fault:
            raise NotSent("gateway_unavailable", f"no connection to {where}: {fault}") from fault
        self._open.add(connection)
        connection.lost.add_done_callback(lambda _: self._open.discard(connection))
        if self._closed or not connection.is_fresh(new=True):
            connection.abort()
            raise NotSent("gateway_unavailable", f"the connection to {where} was closed before the call was written")
        return connection

    def _put_back(self, connection: Connection) -> None:
        if self._closed or not connection.at_rest:
            connection.abort()
            return
        self._idle.append(connection)
        while self._idle[0].rested_at < connection.rested_at - IDLE_LIMIT_S:
            self._idle.popleft().abort()
