"""The Gateways' own Redis: who holds an agent, stored RESULTs, the events of every Gateway at once; and token versions.

For Gateways in Redis mode (contract §9). `gateways` and whoever listens use it; it never publishes or sends a command:
calls go by HTTP. The one thing it writes is which version of an agent's token the Gateways accept (contract §8).
Whatever fails there is `Unavailable`, because it is never the only way to know.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import orjson
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway_client.errors import Unavailable
from gateway_client.models import Envelope

CHANNEL: Final = "bridge:evt"
"""Every event is published here and on `bridge:evt:agent:{id}`; one of the two is enough."""
BATCH: Final = 500
_CONNECTIONS: Final = 16
_MANY: Final = 100
"""RESULTs read at once: each may be large."""
_CLIENT_NAME: Final = "runwarden-gateway-reader"
_VERSIONS_BEYOND: Final = 2**31 - 1
"""No version reaches this; what says so was not written by us."""
_RAISE: Final = """
local told = redis.call('GET', KEYS[1])
local known, entry = pcall(cjson.decode, told or '')
local version = known and type(entry) == 'table' and type(entry.version) == 'number' and entry.version or 0
local given = tonumber(ARGV[1])
if version > given and version < tonumber(ARGV[2]) then return version end
if version ~= given then redis.call('SET', KEYS[1], '{"version":' .. ARGV[1] .. '}') end
return given
"""
"""Never back to a lower version: a write that comes late must not bring back a token that was revoked since."""


class GatewayRedis:
    """Connections are made when first needed; `aclose` ends them. `timeout_s` bounds every exchange."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        """Raises ValueError for a URL that is none."""
        self._url = url
        self._timeout_s = timeout_s
        self._redis = _client(url, timeout_s, connections=_CONNECTIONS, retries=1)

    async def aclose(self) -> None:
        """Closes the connections of the reads; each event stream closes its own."""
        await self._redis.aclose()

    async def holder(self, agent_id: str) -> str | None:
        """The id of the Gateway that holds the agent, None when nobody says so. Raises Unavailable.

        It may be out of date: it stays up to 30 s after a Gateway was killed, and is missing up to 25 s after a flush.
        """
        told = await self._get(f"agent_online:{agent_id}")
        if told is None:
            return None
        try:
            entry = orjson.loads(told)
        except orjson.JSONDecodeError as fault:
            raise Unavailable("bad_answer", f"agent_online:{agent_id} is not JSON") from fault
        name = entry.get("gateway_id") if isinstance(entry, dict) else None
        return name if isinstance(name, str) and name else None

    async def result(self, req_id: str) -> Envelope | None:
        """The stored RESULT, None when there is none (yet). Raises Unavailable."""
        stored = await self._get(f"bridge:result:{req_id}")
        if stored is None:
            return None
        envelope = Envelope.parse(stored)
        if envelope is None:
            raise Unavailable("bad_answer", "the stored result is no envelope")
        return envelope

    async def results(self, req_ids: Sequence[str]) -> dict[str, Envelope | None]:
        """The stored RESULTs of many calls, a few round trips for all; what is no envelope is left out.

        Raises Unavailable.
        """
        found: dict[str, Envelope | None] = {}
        for start in range(0, len(req_ids), _MANY):
            part = req_ids[start : start + _MANY]
            with _speaking("reading bridge:result"):
                told: list[Any] = await self._redis.mget([f"bridge:result:{req_id}" for req_id in part])
            for req_id, stored in zip(part, told, strict=True):
                envelope = None if stored is None else Envelope.parse(stored)
                if stored is None or envelope is not None:
                    found[req_id] = envelope
        return found

    async def raise_token_version(self, sub: str, agent_id: str, version: int) -> int:
        """From now on the Gateways accept no older token of this agent; answers the version that stands, a later one
        if they know it. Raises Unavailable.
        """
        key = _version_key(sub, agent_id)
        with _speaking("writing bridge:agent_token_version"):
            told: Any = await self._redis.eval(_RAISE, 1, key, str(version), str(_VERSIONS_BEYOND))
        return int(told)

    async def token_versions(self, agents: Sequence[tuple[str, str]]) -> list[int]:
        """The versions that they accept of each (sub, agent id); 0 where they accept none. Raises Unavailable."""
        with _speaking("reading bridge:agent_token_version"):
            told: list[Any] = await self._redis.mget([_version_key(*agent) for agent in agents])
        return [_version(entry) for entry in told]

    def events(self, *, silence_timeout_s: float = 45.0) -> "PublishedEvents":
        """A subscription to the events of all Gateways, to be entered."""
        # No retry: redis-py would subscribe again without a word, and hide the gap.
        redis = _client(self._url, self._timeout_s, connections=1, retries=0)
        return PublishedEvents(redis, silence_timeout_s=silence_timeout_s)

    async def _get(self, key: str) -> bytes | None:
        with _speaking(f"reading {key.partition(':')[0]}"):
            told: Any = await self._redis.get(key)
        return None if told is None else bytes(told)


class PublishedEvents:
    """One subscription to `bridge:evt`. Entering connects and waits for the confirmation: then no event passes unseen.

    Iterating gives one non-empty list per wake-up. One reader only; it never reconnects by itself and replays nothing.
    It ends by `Unavailable`: a lost connection, or silence in spite of a PING.
    """

    def __init__(self, redis: Redis, *, silence_timeout_s: float) -> None:
        self._redis = redis
        self._silence_timeout_s = silence_timeout_s
        self._pubsub: PubSub = redis.pubsub()
        self.malformed = 0
        """Messages that should have been an envelope and were not."""

    async def __aenter__(self) -> Self:
        try:
            with _speaking("subscribing to events"):
                await self._pubsub.subscribe(CHANNEL)
                message = await self._pubsub.get_message(timeout=self._silence_timeout_s)
        except BaseException:
            await self._close()
            raise
        if message is None or message["type"] != "subscribe":
            await self._close()
            raise Unavailable("silent", f"not subscribed within {self._silence_timeout_s} s")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Envelope]:
        batch: list[Envelope] = []
        with _speaking("reading events"):
            while not batch:
                message: dict[str, Any] | None = await self._heard_or_asked()
                while message is not None:
                    self._take(message, batch)
                    message = await self._pubsub.get_message(timeout=0) if len(batch) < BATCH else None
        return batch

    async def _heard_or_asked(self) -> dict[str, Any]:
        """The next message of any kind; after half of the silence that is allowed the server is asked for one."""
        half_s = self._silence_timeout_s / 2
        message: dict[str, Any] | None = await self._pubsub.get_message(timeout=half_s)
        if message is None:
            await self._pubsub.ping()
            until = time.monotonic() + half_s
            while message is None and (left_s := until - time.monotonic()) > 0:
                message = await self._pubsub.get_message(timeout=left_s)
        if message is None:
            raise Unavailable("silent", f"no event, no PONG for {self._silence_timeout_s} s")
        return message

    def _take(self, message: dict[str, Any], batch: list[Envelope]) -> None:
        if message["type"] == "subscribe":
            raise Unavailable("connection_lost", "the subscription had to be made anew")
        if message["type"] != "message":
            return
        envelope = Envelope.parse(message["data"])
        if envelope is None:
            self.malformed += 1
        else:
            batch.append(envelope)

    async def _close(self) -> None:
        await self._pubsub.aclose()  # type: ignore[no-untyped-call] # redis-py leaves it untyped
        await self._redis.aclose()


def _version_key(sub: str, agent_id: str) -> str:
    return f"bridge:agent_token_version:{sub}:{agent_id}"


def _version(told: bytes | None) -> int:
    try:
        entry = orjson.loads(told or b"")
    except orjson.JSONDecodeError:
        return 0
    version = entry.get("version") if isinstance(entry, dict) else None
    return version if isinstance(version, int) and 0 < version < _VERSIONS_BEYOND else 0


def _client(url: str, timeout_s: float, *, connections: int, retries: int) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), retries),
        client_name=_CLIENT_NAME,
    )
    return Redis.from_pool(pool)  # and closes it with itself


@contextmanager
def _speaking(what: str) -> Iterator[None]:
    """Around every exchange: raises Unavailable for whatever goes wrong there.

    redis-py sends through `asyncio.wait_for`, which before Python 3.12 may swallow the cancellation of its task
    (python/cpython#86296); a loop that goes on after that could never be stopped, so it is raised again here.
    """
    try:
        yield
    except (TimeoutError, RedisError, OSError) as fault:
        raise Unavailable("redis_error", f"{what}: {fault or type(fault).__name__}") from fault
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
