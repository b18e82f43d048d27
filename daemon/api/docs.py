"""The API told: ``/openapi.json`` for programs and ``/docs`` for people. No token needed; it works offline."""

from __future__ import annotations

from functools import cache
from importlib import resources

from aiohttp import web

from daemon.api.context import DOCUMENT

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"


async def openapi(request: web.Request) -> web.Response:
    """This API as OpenAPI 3.1."""
    return web.Response(body=request.app[DOCUMENT](), content_type="application/json")


async def page(request: web.Request) -> web.Response:
    """The same as a page, which works offline and can send requests."""
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
    return web.Response(body=_page(), content_type="text/html", charset="utf-8", headers=headers)


@cache
def _page() -> bytes:
    return (resources.files("daemon.api") / "docs.html").read_bytes()
