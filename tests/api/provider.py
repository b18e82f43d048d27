"""An identity provider on this machine: serves whatever JWK Set a test gives it, and counts who asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from daemon.dev.processes import free_port
from tests.auth.signers import Signer, key_set


class Provider:
    """``url`` is that of its set. ``answer``, if a test sets it, answers in place of the set."""

    def __init__(self, *keys: Signer) -> None:
        self.keys: list[Signer] = list(keys)
        self.asked = 0
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.held = asyncio.Event()
        """While clear, answers wait; whoever is asked is counted before."""
        self.held.set()
        self.url = ""
        self._runner: web.AppRunner | None = None
        self._port = free_port()

    async def start(self) -> None:
        """Listen; a second time on the same port."""
        app = web.Application()
        app.router.add_get("/jwks", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self.url = f"http://127.0.0.1:{self._port}/jwks"

    async def stop(self) -> None:
        """Nobody listens any more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        await self.held.wait()
        if self.answer is not None:
            return await self.answer(request)
        return web.Response(body=key_set(*self.keys), content_type="application/jwk-set+json")


@asynccontextmanager
async def provider(*keys: Signer) -> AsyncIterator[Provider]:
    """A provider that listens, with these keys."""
    made = Provider(*keys)
    await made.start()
    try:
        yield made
    finally:
        made.held.set()
        await made.stop()
