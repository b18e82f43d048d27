"""The gate before every handler: trace, body limits, who is asking, and every error as RFC 9457 problem+json.

Handlers raise the errors of ``daemon.errors``; nothing a client sends becomes a 500.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from daemon import telemetry
from daemon.api.context import CALLER, CONTEXT
from daemon.auth import authenticate
from daemon.errors import BadRequest, CallerError, Invalid, NotFound, RunwardenError, TooLarge, WorldError
from daemon.machine.spec import faults_of
from daemon.telemetry import log, span

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
STREAM_ROUTES = frozenset({"/v1/workflow-runs/{run_id}/events"})

_M = TypeVar("_M", bound=BaseModel)


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
        if route not in STREAM_ROUTES:
            telemetry.request_seconds.labels(route).observe(time.monotonic() - started)


async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        if request.path not in OPEN_PATHS:
            secret = request.app[CONTEXT].settings.jwt_secret.get_secret_value()
            request[CALLER] = authenticate(request.headers.get("Authorization"), secret)
        return await handler(request)
    except RunwardenError as fault:
        if not isinstance(fault, CallerError):
            log.warning("a request could not be served", path=request.path, fault=str(fault))
        return problem(fault)
    except web.HTTPRequestEntityTooLarge:
        limit = request.app[CONTEXT].settings.body_limit_bytes
        return problem(TooLarge(f"The body is larger than {limit} bytes."))
    except web.HTTPException as fault:
        return _of_aiohttp(fault)
    except ConnectionResetError:
        raise
    except Exception:  # noqa: BLE001 - the last net: the client gets a problem, the log gets the traceback
        log.exception("a handler failed", path=request.path)
        return problem(RunwardenError("Something went wrong inside Runwarden; the log of this node tells more."))


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
    if fault.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="runwarden"'
    if isinstance(fault, WorldError):
        headers["Retry-After"] = "1"
    return web.Response(
        body=orjson.dumps(body), status=fault.status, content_type="application/problem+json", headers=headers
    )


def _of_aiohttp(fault: web.HTTPException) -> web.Response:
    """aiohttp's own refusals (no such route, wrong method, bad headers) in our shape."""
    codes = {404: "no_such_route", 405: "method_not_allowed", 400: "bad_request"}
    error = CallerError(fault.text or fault.reason, code=codes.get(fault.status, "bad_request"))
    answer = problem(error)
    answer.set_status(fault.status)
    body = orjson.loads(answer.body if isinstance(answer.body, bytes) else b"{}") | {"status": fault.status}
    answer.body = orjson.dumps(body)
    if "Allow" in fault.headers:
        answer.headers["Allow"] = fault.headers["Allow"]
    return answer


def path_id(request: web.Request, name: str) -> UUID:
    """An id of the path. Raises NotFound for what is no UUID: there can be no such resource."""
    try:
        return UUID(request.match_info[name])
    except ValueError:
        raise NotFound from None


async def read_json(request: web.Request, *, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object. Raises BadRequest (not JSON), Invalid (not an object, NUL characters), TooLarge."""
    raw = await request.read()
    if not raw and optional:
        return {}
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        raise BadRequest(f"The body is not JSON: {fault}.", code="malformed_json") from None
    if not isinstance(body, dict):
        raise Invalid("The body must be a JSON object.")
    if b"\\u0000" in raw:
        faults = tuple(_nul_paths(body, ""))
        if faults:
            raise Invalid(faults=faults)
    return body


def parse(model: type[_M], body: dict[str, Any]) -> _M:
    """The body as ``model``. Raises Invalid with a JSON pointer for each fault."""
    try:
        return model.model_validate(body)
    except ValidationError as fault:
        raise Invalid(faults=faults_of(fault)) from None


def _nul_paths(value: Any, path: str) -> list[tuple[str, str]]:
    match value:
        case str():
            return [(path or "/", "NUL characters cannot be stored")] if "\x00" in value else []
        case list():
            return [found for index, item in enumerate(value) for found in _nul_paths(item, f"{path}/{index}")]
        case dict():
            inside = [found for key, item in value.items() for found in _nul_paths(item, f"{path}/{key}")]
            keys = [(path or "/", "NUL characters cannot be stored") for key in value if "\x00" in key]
            return keys + inside
        case _:
            return []
