"""The log read back: payloads as Postgres keeps them, as events again. The other half of ``daemon.machine.wire``.

Nothing in the daemon needs it; the checkers do, because only what stands in the log counts as having happened.
"""

from __future__ import annotations

from typing import Any, get_args

import orjson
from msgspec.structs import fields

from daemon.machine.commands import Mark
from daemon.machine.events import Event

ALIASES = {"step_index": "current_step_index", "detail": "message"}
"""Where a payload's name is not the field's."""
BETWEEN: dict[str, dict[str, Any]] = {
    "StepFailed": {"status": "failed"},
    "AttemptIntended": {"status": "running"},
    "RunParked": {"paused_reason": "engine_interrupted"},
    "StepMarkedDone": {"marked": True},
    "AttemptSettled": {"settles": ...},
}
"""What tells classes of one wire type apart: what the payload has (``...``: anything) where it is this class."""


def read_event(event_type: str, raw: bytes) -> Event:
    """The event that a row of the log tells of."""
    body: dict[str, Any] = orjson.loads(raw)
    classes = [one for one in get_args(Event) if one.type == event_type]
    marked = [one for one in classes if one.__name__ in BETWEEN and _fits(body, BETWEEN[one.__name__])]
    plain = [one for one in classes if one.__name__ not in BETWEEN]
    (kind,) = (marked or plain)[:1]
    return kind(**_told(kind, body))  # type: ignore[no-any-return] # a class of Event


def _fits(body: dict[str, Any], marks: dict[str, Any]) -> bool:
    return all(name in body and value in (..., body[name]) for name, value in marks.items())


def _told(kind: Any, body: dict[str, Any]) -> dict[str, Any]:
    error = body.get("error") or {}
    known = body | {"error_code": error.get("code"), "error_message": error.get("message")} if "error" in body else body
    if "settles" in body:
        known = known | {"outcome": body["settles"]}
    if "mark" in known:
        known = known | {"mark": Mark(*known["mark"])}
    values: dict[str, Any] = {}
    for one in fields(kind):
        name = ALIASES.get(one.name, one.name)
        if name in known:
            values[one.name] = known[name]
        elif one.name in known:
            values[one.name] = known[one.name]
        elif one.required:
            values[one.name] = None
    return values
