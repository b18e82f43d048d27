"""The gate before every handler: trace, body limits, who is asking, and every error as RFC 9457 problem+json.

Handlers raise the errors of ``daemon.errors``; nothing a client sends becomes a 500.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from daemon import telemetry
from daemon.api.context import CALLER, CONTEXT
from daemon.auth import authenticate
from daemon.errors import BadRequest, CallerError, Invalid, NotFound, RunwardenError, TooLarge, WorldError
from daemon.machine.spec import escape, faults_of
from daemon.telemetry import log, span

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
STREAM_ROUTES = frozenset({"/v1/workflow-runs/{run_id}/events"})

MAX_DEPTH = 200
"""Bodies nested deeper are refused: pydantic and orjson read deeper than they can write (254)."""
MAX_FAULTS = 20
"""Faults told of one body."""
_MANY_DIGITS = re.compile(rb"\d{19}")

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
    """The body as a JSON object that can be stored and told again as it came. Raises BadRequest, Invalid, TooLarge.

    Refused beside what is no JSON: NUL characters (Postgres), integers beyond 64 bits (they would be rounded) and
    nesting that we could read but not write.
    """
    try:
        raw = await request.read()
    except web.RequestPayloadError as fault:
        raise BadRequest(f"The body is not what its headers say: {fault.__cause__ or fault}.") from None
    if not raw and optional:
        return {}
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        raise Invalid(f"The body is not JSON: {fault}.", code="malformed_json") from None
    if not isinstance(body, dict):
        raise Invalid("The body must be a JSON object.")
    if b"\\u0000" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        faults = tuple(islice(_unkept(body, "", 1), MAX_FAULTS))
        if faults:
            raise Invalid(faults=faults)
    if _MANY_DIGITS.search(raw):
        json.loads(raw, parse_int=_exact)
    return body


def parse(model: type[_M], body: dict[str, Any]) -> _M:
    """The body as ``model``. Raises Invalid with a JSON pointer for each fault."""
    try:
        return model.model_validate(body)
    except ValidationError as fault:
        raise Invalid(faults=faults_of(fault)) from None


def _unkept(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """What of a JSON value cannot be kept: (JSON pointer, why) of each fault."""
    match value:
        case str() if "\x00" in value:
            yield path or "/", "NUL characters cannot be stored"
        case list() | dict() if depth > MAX_DEPTH:
            yield path, f"nested deeper than {MAX_DEPTH}"
        case list():
            for index, item in enumerate(value):
                yield from _unkept(item, f"{path}/{index}", depth + 1)
        case dict():
            for key, item in value.items():
                if "\x00" in key:
                    yield path or "/", "NUL characters cannot be stored"
                yield from _unkept(item, f"{path}/{escape(key)}", depth + 1)
        case _:
            pass


def _exact(digits: str) -> int:
    """An integer of a body, if 64 bits hold it; orjson would make a float of any other."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise Invalid(f"The number {digits[:40]} is beyond 64 bits and would be rounded: send it as text.")
    return int(digits)
