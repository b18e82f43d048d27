"""The identity provider, as far as we speak with it: its JWK Set, fetched with bounds, kept, and renewed in time.

``run`` renews the set before it is old; ``look_again`` reads it for a token whose key nobody knows, at most once in a
while, and for all who ask at once together. While it cannot be read the last keys stand for a bounded time. What a key
is good for, ``auth/keys`` decides; the keys go into the keyring that ``auth/tokens`` verifies with.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import aiohttp

from daemon import telemetry
from daemon.auth.keys import Keyring, NoKeySet, published
from daemon.config import Identity
from daemon.errors import IssuerUnavailable
from daemon.telemetry import log

FETCH_TIMEOUT = aiohttp.ClientTimeout(total=5.0, sock_connect=3.0)
MAX_BYTES = 256 * 1024
"""Of the document; a large provider's is 10 KB."""
_HEADERS = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}


class _NotRead(Exception):
    """The set could not be read. The message says why."""


class Issuer:
    """The keys at one URL. ``fault`` says why nobody's token can be verified; None while some keys are trusted."""

    def __init__(self, settings: Identity, keyring: Keyring, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._url = settings.jwks_url
        self._refresh_s = settings.jwks_refresh_s
        self._keep_s = settings.jwks_keep_s
        self._pause_s = settings.jwks_pause_s
        self._keyring = keyring
        self._monotonic = monotonic
        self._asked_at = -math.inf
        self._read_at = -math.inf
        self._not_read: str | None = "it was not read yet"
        self._reading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Renew the keys before they are old, until cancelled."""
        try:
            while True:
                await self._read()
                now = self._monotonic()
                due = self._refresh_s if self._not_read is None else min(self._pause_s, self._refresh_s)
                ends = self._read_at + self._keep_s - now
                await asyncio.sleep(min(due, ends) if ends > 0 else due)
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def look_again(self) -> None:
        """Read the set, unless that was done a moment ago. Raises IssuerUnavailable when it does not tell."""
        if self._reading is not None or self._monotonic() - self._asked_at >= self._pause_s:
            await self._read()
        if self._not_read is not None:
            raise IssuerUnavailable(f"The keys of the identity provider cannot be read: {self._not_read}. Try again.")

    def fault(self) -> str | None:
        """For ``/readyz``."""
        if self._monotonic() - self._read_at < self._keep_s:
            return None
        return f"The keys at {self._url} cannot be read: {self._not_read or 'they are too old'}"

    async def _read(self) -> None:
        """One reading for all who wait; whoever goes away leaves it to the others."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._renew(), name="read the JWKS")
        await asyncio.shield(self._reading)

    async def _renew(self) -> None:
        self._asked_at = self._monotonic()
        try:
            keys = published(await _fetched(self._url))
        except (_NotRead, NoKeySet) as fault:
            self._failed(str(fault))
        except Exception as fault:  # noqa: BLE001 - whatever a document does to its parsers must not end the node
            self._failed(f"it cannot be understood: {type(fault).__name__}: {fault}")
        else:
            if self._not_read is not None:
                log.info("the JWKS was read", url=self._url, keys=len(keys))
            self._keyring.publish(keys)
            self._read_at, self._not_read = self._monotonic(), None
            telemetry.jwks_reads.labels("read").inc()
        finally:
            self._reading = None

    def _failed(self, why: str) -> None:
        if self._not_read != why:
            log.warning("the JWKS could not be read", url=self._url, fault=why)
        self._not_read = why
        telemetry.jwks_reads.labels("failed").inc()
        if self._monotonic() - self._read_at >= self._keep_s:
            self._keyring.publish(())


async def _fetched(url: str) -> bytes:
    """The document, within time and size. Raises _NotRead. Redirects are refused: the settings say where keys are."""
    try:
        async with (
            aiohttp.ClientSession(
                timeout=FETCH_TIMEOUT, headers=_HEADERS, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            ) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                redirected = " (redirects are not followed)" if 300 <= answer.status < 400 else ""
                raise _NotRead(f"the answer is {answer.status}{redirected}")
            document = bytearray()
            async for part in answer.content.iter_chunked(16 * 1024):
                document += part
                if len(document) > MAX_BYTES:
                    raise _NotRead(f"it is larger than {MAX_BYTES} bytes")
    except TimeoutError:
        raise _NotRead(f"it does not come within {FETCH_TIMEOUT.total:.0f} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as fault:
        raise _NotRead(str(fault) or type(fault).__name__) from None
    return bytes(document)
