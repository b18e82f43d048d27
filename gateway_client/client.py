"""The Gateway's HTTP API as methods: calls and many small reads over the thin invoker, everything rare over aiohttp.

The one door of this room for the daemon. It never retries, never times a call out by itself and never hides an
outcome: each method returns what the Gateway said or raises from the tree in `errors`.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
import orjson
from yarl import URL

from gateway_client.errors import (
    MaybeSent,
    NotSent,
    ResultsUnsupported,
    Unavailable,
    error_word,
    fault_of_call,
    fault_of_read,
)
from gateway_client.http1 import Answer, Endpoint, UnsafeHeader, check_header, get_bytes, post_bytes, post_head
from gateway_client.invoker import Invoker
from gateway_client.models import AgentInfo, Envelope, Invocation, ToolInfo
from gateway_client.stream import EventStream, unreachable

_TOKEN_HEADER: Final = "X-Internal-Token"  # noqa: S105  (the header's name, not a secret)
_READ_TIMEOUT_S: Final = 30.0  # a Gateway whose Redis is down answers only after its own retries
_MAX_READ_BYTES: Final = 16 * 1024 * 1024
_MAX_TOOLS: Final = 2_000
"""An agent may say that it has more; nobody hears of those."""
_GLANCES: Final = 8
_GLANCE_TIMEOUT_S: Final = 2.0


class GatewayClient:
    """One Gateway. Connections are made when first needed; `aclose` (or `async with`) ends them.

    Calls that a blocked agent leaves hanging hold their connections, at most `calls_per_agent` of `max_connections`;
    what has no place within `queue_timeout_s` is NotSent (both: None for no bound). Cancels have connections of their
    own (as many again at most), so that they need not queue behind the very calls that they are to stop.
    """

    def __init__(
        self,
        base_url: str,
        token: str = "",
        *,
        max_connections: int = 64,
        calls_per_agent: int | None = None,
        queue_timeout_s: float | None = None,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float | None = None,
    ) -> None:
        """Raises ValueError for a URL that is none, and for a token that does not fit into a header."""
        check_header(_TOKEN_HEADER, token)
        self.url = base_url
        self._endpoint = Endpoint.parse(base_url)
        self._token = token
        self._headers = {_TOKEN_HEADER: token} if token else {}
        self._connect_timeout_s = connect_timeout_s
        self._tls = ssl.create_default_context() if self._endpoint.secure else None
        self._invoke_head = post_head(self._endpoint, "/internal/bridge/invoke", token)
        self._cancel_head = post_head(self._endpoint, "/internal/bridge/cancel", token)
        self._invoker, self._canceller = (
            Invoker(
                self._endpoint,
                tls=self._tls,
                max_connections=max_connections,
                per_agent=calls_per_agent,
                queue_timeout_s=queue_timeout_s,
                connect_timeout_s=connect_timeout_s,
                answer_timeout_s=answer_timeout_s,
            )
            for _ in range(2)
        )
        self._reader = Invoker(
            self._endpoint,
            tls=self._tls,
            max_connections=_GLANCES,
            per_agent=None,
            queue_timeout_s=_READ_TIMEOUT_S,
            connect_timeout_s=connect_timeout_s,
            answer_timeout_s=_GLANCE_TIMEOUT_S,
        )
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def begin_no_more(self) -> None:
        """Invokes that wait for a place are NotSent(not_permitted) at once, and all later ones."""
        self._invoker.begin_no_more()

    async def aclose(self) -> None:
        """Closes every connection. Calls under way raise MaybeSent, later ones NotSent."""
        self._closed = True
        await self._invoker.aclose()
        await self._canceller.aclose()
        await self._reader.aclose()
        if self._session is not None:
            await self._session.close()

    async def invoke(
        self,
        call: Invocation,
        *,
        may_send: Callable[[], bool] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Returns when the Gateway has written the call to the agent's tunnel (202); that proves no more than that.

        `may_send` is asked synchronously, connection in hand, immediately before the write; its False is
        NotSent(not_permitted), and what it raises passes through with nothing sent. `headers` go along, for instance
        a `traceparent`. Raises NotSent or MaybeSent.
        """
        request = _request(self._invoke_head, _invocation(call), headers)
        answer = await self._invoker.post(request, call.agent_id, may_send)
        if answer.status != 202:
            raise fault_of_call(answer.status, answer.body)

    def invoke_at_once(
        self,
        call: Invocation,
        *,
        may_send: Callable[[], bool],
        told: Callable[[NotSent | MaybeSent | None], None],
        headers: Mapping[str, str] | None = None,
    ) -> asyncio.Future[Any] | None:
        """As `invoke`, without a task, where nothing need be waited for before the write; else None, nothing done.

        `told` hears once what `invoke` would have raised (None: 202), when the future is done; cancelling that gives
        the call up. Raises NotSent for what is known before the write.
        """

        def over(outcome: Answer | MaybeSent) -> None:
            if isinstance(outcome, MaybeSent):
                told(outcome)
            else:
                told(None if outcome.status == 202 else fault_of_call(outcome.status, outcome.body))

        request = _request(self._invoke_head, _invocation(call), headers)
        return self._invoker.post_at_once(request, call.agent_id, may_send, over)

    async def cancel(self, req_id: str, agent_id: str, reason: str = "") -> None:
        """Returns when the cancel was written to the agent's tunnel. Raises NotSent or MaybeSent."""
        body = {"req_id": req_id, "agent_id": agent_id, **({"reason": reason} if reason else {})}
        answer = await self._canceller.post(_request(self._cancel_head, body, None), agent_id)
        if answer.status != 202:
            raise fault_of_call(answer.status, answer.body)

    async def result(self, req_id: str) -> Envelope | None:
        """The stored RESULT, None when the Gateway has none (yet). Raises ResultsUnsupported, NotSent, Unavailable."""
        return _stored(*await self._read(_result_path(req_id)))

    async def glance(self, req_id: str) -> Envelope | None:
        """As `result`, for asking about many calls: eight at a time, at a fifth of the CPU, with little patience.

        What the thin client cannot read (an answer over 1 MiB, a connection that ended) is asked for once more by
        `result`.
        """
        request = get_bytes(self._endpoint, f"/internal/bridge{_result_path(req_id)}", self._token)
        try:
            answer = await self._reader.post(request, agent_id="")
        except MaybeSent:
            return await self.result(req_id)
        return _stored(answer.status, answer.body)

    async def agents(self) -> list[AgentInfo]:
        """Every agent that the Gateway knows, in no order. Raises NotSent, Unavailable."""
        entries = await self._read_list("/agents", "agents")
        return [agent for entry in entries if (agent := AgentInfo.from_wire(entry)) is not None]

    async def tools(self, agent_id: str) -> list[ToolInfo]:
        """The tools of an agent; empty also while the agent has only said hello. Raises NotSent, Unavailable."""
        entries = await self._read_list(f"/agents/{quote(agent_id, safe='')}/tools", "tools")
        return [tool for entry in entries[:_MAX_TOOLS] if (tool := ToolInfo.from_wire(entry)) is not None]

    def events(
        self, *, agent_id: str | None = None, req_id: str | None = None, silence_timeout_s: float = 45.0
    ) -> EventStream:
        """A subscription, to be entered. A `req_id` filter never sees DISCONNECT and TOOLS: these carry none."""
        filters = {"agent_id": agent_id, "req_id": req_id}
        query = urlencode({name: value for name, value in filters.items() if value is not None})
        return EventStream(
            self._open_session,
            self._url(f"/events?{query}" if query else "/events"),
            connect_timeout_s=self._connect_timeout_s,
            silence_timeout_s=silence_timeout_s,
        )

    def _url(self, path: str) -> URL:
        return URL(f"{self._endpoint.url}/internal/bridge{path}", encoded=True)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._closed:
            raise NotSent("gateway_unavailable", "this client is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                # No limit: event streams keep theirs for ever, and a read must not wait for one of them to end.
                connector=aiohttp.TCPConnector(limit=0, ssl=self._tls or True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=_READ_TIMEOUT_S, sock_connect=self._connect_timeout_s),
            )
        return self._session

    async def _read(self, path: str) -> tuple[int, bytes]:
        body = bytearray()
        try:
            # A redirect would carry the token to somewhere else.
            async with self._open_session().get(self._url(path), allow_redirects=False) as response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_READ_BYTES:
                        raise Unavailable("bad_answer", f"over {_MAX_READ_BYTES} bytes")
                return response.status, bytes(body)
        except (aiohttp.ClientError, OSError) as fault:
            raise unreachable(fault, during=f"reading {path}") from fault

    async def _read_list(self, path: str, name: str) -> list[Any]:
        """The list under `name` of a JSON object; null counts as empty."""
        status, body = await self._read(path)
        if status != 200:
            raise fault_of_read(status, body)
        try:
            told = orjson.loads(body)
        except orjson.JSONDecodeError as fault:
            raise Unavailable("bad_answer", f"{path} is not JSON") from fault
        entries = (told.get(name) or []) if isinstance(told, dict) and name in told else None
        if not isinstance(entries, list):
            raise Unavailable("bad_answer", f"{path} has no list of {name}")
        return entries


def _invocation(call: Invocation) -> dict[str, Any]:
    return {
        "req_id": call.req_id,
        "agent_id": call.agent_id,
        "tool_name": call.tool_name,
        "arguments": call.arguments,
        "timeout_ms": call.timeout_ms,
        "stream": call.stream,
    }


def _result_path(req_id: str) -> str:
    return f"/results/{quote(req_id, safe='')}"


def _stored(status: int, body: bytes) -> Envelope | None:
    """What an answer about a stored RESULT says."""
    if status == 501:
        raise ResultsUnsupported("results_unsupported", error_word(body))
    if status == 404 and error_word(body) == "not_found":
        return None
    if status != 200:
        raise fault_of_read(status, body)
    envelope = Envelope.parse(body)
    if envelope is None:
        raise Unavailable("bad_answer", "the stored result is no envelope")
    return envelope


def _request(head: bytes, body: dict[str, Any], headers: Mapping[str, str] | None) -> bytes:
    """The whole request; what cannot be said in JSON or in a header was surely not sent."""
    try:
        return post_bytes(head, orjson.dumps(body, default=_plain), headers)
    except (orjson.JSONEncodeError, UnsafeHeader) as fault:
        raise NotSent("invalid_request", str(fault)) from fault


def _plain(value: object) -> object:
    """Read-only mappings, at any depth of the arguments, are objects too."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
