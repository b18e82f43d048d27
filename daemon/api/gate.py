"""The gate before every handler: trace, body limits, who is asking, and every error as RFC 9457 problem+json.

Handlers raise the errors of ``daemon.errors``; nothing a client sends becomes a 500.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from daemon import telemetry
from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.peers import address_of
from daemon.api.refusals import note_refusal
from daemon.auth.caller import Caller, Origin
from daemon.errors import CallerError, Conflict, Invalid, RunwardenError, TooLarge, TooMany, TooSlow, WorldError
from daemon.telemetry import log, span

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"})
OURS = "Something went wrong inside Runwarden; the log of this node tells more."
MAX_CLIENT = 300
"""Characters kept of a ``User-Agent``."""
EVENTS = "/v1/workflow-runs/{run_id}/events"
"""The stream: it takes as long as its client likes, and a ticket opens it as well as a token."""


@web.middleware
async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Everything that is the same for every route."""
    started = time.monotonic()
    resource = request.match_info.route.resource
    route = resource.canonical if resource is not None else "none"
    status = 500
    try:
        with span(f"{request.method} {route}", headers=request.headers):
            response = await _guarded(request, handler)
        status = response.status
        return response
    finally:
        telemetry.requests.labels(route, status).inc()
        if route != EVENTS:
            telemetry.request_seconds.labels(route).observe(time.monotonic() - started)


async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        if request.path not in OPEN_PATHS:
            request[CALLER] = caller = await _caller(request)
            request[ORIGIN] = _origin(request, caller)
        return await handler(request)
    except RunwardenError as fault:
        if not isinstance(fault, CallerError):
            log.warning("a request could not be served", path=request.path, fault=str(fault))
        await note_refusal(request, fault)
        return problem(fault)
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[CONTEXT].settings.body_limit_bytes
        return problem(TooLarge(f"The body is larger than {limit} bytes."))
    except web.HTTPException as fault:
        return _of_aiohttp(fault, request)
    except ConnectionResetError:
        raise
    except Exception:  # noqa: BLE001 - the last net: the client gets a problem, the log gets the traceback
        log.exception("a handler failed", path=request.path)
        return problem(RunwardenError(OURS))


async def _caller(request: web.Request) -> Caller:
    """Who is asking, by token or, for a stream, by ticket. No query is ever logged, since a ticket may be in it."""
    callers = request.app[CONTEXT].callers
    authorization, ticket = request.headers.get("Authorization"), request.query.get("ticket")
    resource = request.match_info.route.resource
    if authorization is None and ticket is not None and resource is not None and resource.canonical == EVENTS:
        return await callers.by_ticket(ticket, request.match_info["run_id"])
    return await callers.by_token(authorization)


def _origin(request: web.Request, caller: Caller) -> Origin:
    """For the audit: who, and over which connection."""
    client = request.headers.get("User-Agent")
    if client is not None:  # whatever bytes it was: what Postgres cannot store must not spoil what it stands beside
        client = client.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\x00", "")[:MAX_CLIENT]
    return Origin(
        actor=caller.user_id,
        roles=tuple(sorted(caller.roles)),
        groups=tuple(sorted(caller.groups)),
        via=caller.via,
        address=address_of(request, request.app[CONTEXT].settings.trusted_proxies),
        client=client,
    )


def problem(fault: RunwardenError) -> web.Response:
    """An error as application/problem+json (RFC 9457): type, title, status, code, detail, and the faults of a body."""
    body: dict[str, Any] = {
        "type": f"urn:runwarden:problem:{fault.problem_code}",
        "title": fault.problem_code.replace("_", " "),
        "status": fault.status,
        "code": fault.problem_code,
        "detail": fault.detail,
    }
    if isinstance(fault, Invalid) and fault.faults:
        body["errors"] = [{"path": path, "message": message} for path, message in fault.faults]
    headers = {}
    if isinstance(fault, Conflict) and fault.location is not None:
        headers["Location"] = fault.location
    if fault.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="runwarden"'
    if isinstance(fault, WorldError | TooMany):
        headers["Retry-After"] = "1" if isinstance(fault, WorldError) else "10"
    answer = web.Response(
        body=orjson.dumps(body), status=fault.status, content_type="application/problem+json", headers=headers
    )
    if isinstance(fault, TooSlow):  # the rest of its body is not waited for
        answer.force_close()
    return answer


def _of_aiohttp(fault: web.HTTPException, request: web.Request) -> web.Response:
    """aiohttp's own refusals (no such route, wrong method, bad headers) in our shape."""
    codes = {404: "no_such_route", 405: "method_not_allowed", 400: "bad_request"}
    allowed = (_allowed(request) or fault.headers["Allow"]) if "Allow" in fault.headers else None
    says = {
        404: "There is no such path: /openapi.json has all that there are.",
        405: f"This path takes {allowed}, not {request.method}.",
    }
    detail = says.get(fault.status) or fault.text or fault.reason
    error = CallerError(detail, code=codes.get(fault.status, "bad_request"))
    answer = problem(error)
    answer.set_status(fault.status)
    body = orjson.loads(answer.body if isinstance(answer.body, bytes) else b"{}") | {"status": fault.status}
    answer.body = orjson.dumps(body)
    if allowed is not None:
        answer.headers["Allow"] = allowed
    return answer


def _allowed(request: web.Request) -> str:
    """The methods of the route that is exactly this path; aiohttp adds those of ``{…}`` that it also fits."""
    exact = (one for one in request.app.router.resources() if one.canonical == request.path)
    return ",".join(sorted({route.method for resource in exact for route in resource} - {"*"}))
