"""What the dev Gateway's handlers read and answer with: bodies by type, JSON with a newline, errors, plain 404.

Only ``gateway`` uses it. It knows no agent and keeps nothing.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from daemon.dev.envelope import Json, decode, encode, through_float64

INVOKE_FIELDS: dict[str, tuple[type, Any]] = {
    "req_id": (str, ""),
    "agent_id": (str, ""),
    "tool_name": (str, ""),
    "arguments": (dict, None),
    "timeout_ms": (int, 0),
    "stream": (bool, False),
}
CANCEL_FIELDS: dict[str, tuple[type, Any]] = {"req_id": (str, ""), "agent_id": (str, ""), "reason": (str, "")}


def fields(body: bytes, wanted: dict[str, tuple[type, Any]]) -> Json | None:
    """The wanted fields of a JSON object, null and absent alike as their default; None when a type does not fit."""
    try:
        given = decode(body)
        if given is None:
            given = {}
        if not isinstance(given, dict):
            return None
        taken: Json = {}
        for name, (kind, default) in wanted.items():
            value = given.get(name)
            if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
                return None
            taken[name] = default if value is None else through_float64(value) if kind is dict else value
    except (ValueError, OverflowError, RecursionError):
        return None
    return taken


async def bare_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """401 and 405 have no body and therefore no type; aiohttp would invent one."""
    response.headers.popall("Server", None)
    if isinstance(response, web.Response) and not response.body:
        response.headers.popall("Content-Type", None)


async def unknown_path(_request: web.Request) -> web.StreamResponse:
    return page_not_found()


def page_not_found() -> web.Response:
    headers = {"X-Content-Type-Options": "nosniff"}
    return web.Response(status=404, text="404 page not found\n", content_type="text/plain", headers=headers)


def json_answer(status: int, value: Json) -> web.Response:
    return web.Response(status=status, body=encode(value) + b"\n", content_type="application/json")


def error_answer(status: int, code: str) -> web.Response:
    return json_answer(status, {"error": code})
