"""The connection to Redis: opened with a bounded wait, checked, errors turned into the tree's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from daemon.config import mask
from daemon.errors import FabricUnavailable, SetupError
from daemon.fabric.line import Line, Script
from daemon.fabric.primary import open_primary
from daemon.telemetry import log

CONNECT_TIMEOUT_S = 5.0
OLDEST_SERVER = (6, 2)
SAFE_POLICY = "noeviction"
KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""Seconds, seconds, times: a server that vanished without a word is known by that to an ear, which never speaks."""


class Client:
    """One Redis, three manners of speaking: ``line`` for what every step asks (and ``doorbell``, another such, for the
    one read of those that blocks), ``redis`` for all that is rarer, ``patient`` for blocking reads.

    A blocking read goes ``within`` a limit too: a server that vanished without a word would be waited for for ever.
    """

    def __init__(self, url: str, *, timeout_s: float = 5.0) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self.redis, sentinel = open_primary(url, **_options(url, connections=32, timeout_s=timeout_s))
        self.patient, patient_sentinel = open_primary(url, **_options(url, connections=8, timeout_s=None))
        self._sentinels = [one for one in (sentinel, patient_sentinel) if one is not None]
        make = self.redis.connection_pool.make_connection
        self.line, self.doorbell = Line(make, timeout_s=timeout_s), Line(make, timeout_s=timeout_s)

    def script(self, name: str) -> Any:
        """A script of ``lua/``; loaded when the server does not know it (NOSCRIPT), so SCRIPT FLUSH harms nothing."""
        return self.redis.register_script(script(name).text)

    def within(self, block_ms: int) -> asyncio.Timeout:
        """Around a blocking read that the server answers after ``block_ms`` at the latest."""
        return asyncio.timeout(block_ms / 1000 + self._timeout_s)

    async def close(self) -> None:
        self.line.close()
        self.doorbell.close()
        await self.redis.aclose()
        await self.patient.aclose()
        for sentinel in self._sentinels:
            await sentinel.aclose()


def script(name: str) -> Script:
    """A script of ``lua/``."""
    return Script(resources.files("daemon.fabric").joinpath("lua", name + ".lua").read_text())


def _options(url: str, *, connections: int, timeout_s: float | None) -> dict[str, Any]:
    """How every connection is opened: few enough, with bounded waits, tried once more when it turns out dead."""
    alive: dict[str, Any] = {}
    if not url.startswith("unix:"):
        known = {getattr(socket, name): value for name, value in KEEPALIVE.items() if hasattr(socket, name)}
        alive = {"socket_keepalive": True, "socket_keepalive_options": known}
    return alive | {
        "max_connections": connections,
        "timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(NoBackoff(), 1),
        "client_name": "runwarden",
    }


async def open_client(url: str, *, patience_s: float, allow_eviction: bool = False) -> Client:
    """A client, once Redis answers and proved fit.

    Raises SetupError (password masked) when that takes longer than ``patience_s``, when the server is older than 6.2,
    or when its maxmemory-policy may evict our keys and ``allow_eviction`` is off.
    """
    try:
        client = Client(url)
    except ValueError as fault:
        raise SetupError(f"Redis URL {mask(url)} cannot be read: {fault}") from None
    until = time.monotonic() + patience_s
    while True:
        try:
            info = await client.redis.info("everything")
        except (RedisError, OSError) as fault:
            if time.monotonic() >= until:
                await client.close()
                raise SetupError(f"Redis at {mask(url)} does not answer: {fault}") from None
            log.info("waiting for Redis", url=mask(url), fault=str(fault))
            await asyncio.sleep(min(0.5, patience_s / 4))
        else:
            break
    problem = _unfit(info, allow_eviction)
    if problem is not None:
        await client.close()
        raise SetupError(f"Redis at {mask(url)} {problem}")
    return client


def _unfit(info: dict[str, Any], allow_eviction: bool) -> str | None:
    version = tuple(int(part) for part in str(info.get("redis_version", "0.0")).split(".")[:2])
    if version < OLDEST_SERVER:
        return f"is version {info.get('redis_version')}; Runwarden needs 6.2 or newer."
    policy = str(info.get("maxmemory_policy", SAFE_POLICY))
    if policy != SAFE_POLICY and not allow_eviction:
        return (
            f"has maxmemory-policy {policy}, which may evict leases and inboxes: set it to {SAFE_POLICY}, "
            "or set RUNWARDEN_REDIS_ALLOW_EVICTION=true if you accept runs that stall until the sweep finds them."
        )
    return None


@contextmanager
def speaking() -> Iterator[None]:
    """Around every exchange with Redis: raises FabricUnavailable for whatever goes wrong there.

    redis-py sends through ``asyncio.wait_for``, which before Python 3.12 may swallow the cancellation of its task
    (python/cpython#86296): a loop that goes on after that can never be stopped, so it is raised again here.
    RuntimeError is uvloop's word for a connection that has just been closed.
    """
    try:
        yield
    except (TimeoutError, RedisError, OSError, RuntimeError) as fault:
        raise FabricUnavailable(f"Redis does not answer ({fault}); nothing was lost.") from fault
    finally:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
