"""For the operator: ``/healthz`` (alive), ``/readyz`` (fit to serve, and why not), ``/metrics``. No token needed."""

from __future__ import annotations

from aiohttp import web

from daemon.api.context import CONTEXT
from daemon.api.shapes import json_response
from daemon.telemetry import exposition

ESSENTIAL = frozenset({"postgres", "redis"})
"""Without these a node serves nothing; the absence of others is told, and the node stays ready."""


async def healthz(request: web.Request) -> web.Response:
    """200 while the event loop turns."""
    return json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """200 when Postgres and Redis answer and the node is not leaving; every part says how it is."""
    health = request.app[CONTEXT].health
    told = {name: part() for name, part in health.parts.items()}
    broken = [name for name, fault in told.items() if fault is not None and name in ESSENTIAL]
    ready = not broken and not health.leaving
    body = {
        "status": "leaving" if health.leaving else ("ready" if ready else "not_ready"),
        "checks": {name: fault or "ok" for name, fault in told.items()},
    }
    return json_response(body, status=200 if ready else 503)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    return web.Response(body=exposition(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
