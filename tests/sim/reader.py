"""The log read back: payloads as Postgres keeps them, as events again. The other half of ``daemon.machine.wire``.

Nothing in the daemon needs it; the checkers do, because only what stands in the log counts as having happened.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, get_args

import orjson
from msgspec import convert
from msgspec.structs import FieldInfo, fields

from daemon.machine.approval import Difference, Revision, Vote
from daemon.machine.commands import Mark, Who
from daemon.machine.events import Event, StepApproved, StepEdited, StepPaused, StepVoted
from daemon.machine.ground import Traits

ALIASES = {"step_index": "current_step_index", "detail": "message", "code": "error_code"}
"""Where a payload's name is not the field's."""
BETWEEN: dict[str, dict[str, Any]] = {
    "StepFailed": {"status": "failed"},
    "AttemptIntended": {"status": "running"},
    "RunParked": {"paused_reason": "engine_interrupted"},
    "StepMarkedDone": {"marked": True},
    "AttemptSettled": {"settles": ...},
}
"""What tells classes of one wire type apart: what the payload has (``...``: anything) where it is this class."""


def read_event(event_type: str, raw: bytes, at: int) -> Event:
    """The event that a row of the log tells of, and of which ``at`` is the time (epoch ms)."""
    body: dict[str, Any] = orjson.loads(raw)
    classes = [one for one in get_args(Event) if one.type == event_type]
    marked = [one for one in classes if one.__name__ in BETWEEN and _fits(body, BETWEEN[one.__name__])]
    plain = [one for one in classes if one.__name__ not in BETWEEN]
    (kind,) = (marked or plain)[:1]
    return kind(**_told(kind, body, at))  # type: ignore[no-any-return] # a class of Event


def _fits(body: dict[str, Any], marks: dict[str, Any]) -> bool:
    return all(name in body and value in (..., body[name]) for name, value in marks.items())


@lru_cache
def _fields(kind: Any) -> tuple[FieldInfo, ...]:
    """msgspec reads the annotations anew each time."""
    return fields(kind)


def _told(kind: Any, body: dict[str, Any], at: int) -> dict[str, Any]:
    error = body.get("error") or {}
    known = body | {"error_code": error.get("code"), "error_message": error.get("message")} if "error" in body else body
    if "settles" in body:
        known = known | {"outcome": body["settles"]}
    if "mark" in known:
        known = known | {"mark": Mark(*known["mark"])}
    if "who" in known:
        known = known | {"who": convert(known["who"], Who)}
    if kind in (StepVoted, StepApproved):
        known = known | {"vote": _vote(known, at)}
    if kind is StepEdited:
        known = known | {"diff": tuple(convert(known["diff"], list[Difference]))}
    if kind in (StepPaused, StepEdited):
        known = known | {"revision": _revision(known) if "revision" in known else None}
    values: dict[str, Any] = {}
    for one in _fields(kind):
        name = ALIASES.get(one.name, one.name)
        if name in known:
            values[one.name] = known[name]
        elif one.name in known:
            values[one.name] = known[one.name]
        elif one.required:
            values[one.name] = None
    return values


def _vote(body: dict[str, Any], at: int) -> Vote:
    about = {"digest": body.get("digest_given"), "comment": body.get("comment")}
    return Vote(by=body["by"], at=at, **about | ({"who": body["who"]} if "who" in body else {}))


def _revision(card: dict[str, Any]) -> Revision:
    """The revision of a card, as it was opened."""
    traits = {name: card[name] for name in ("risk", "writes", "open_world", "idempotent", "requires_approval")}
    edited = orjson.dumps(card["arguments"]).decode() if card["edited_by"] is not None else None
    names = ("agent_id", "tool_name", "timeout_ms", "schema_hash", "digest", "opened_at", "expires_at")
    names += ("edited_by", "attempts")
    return Revision(
        step_index=card["current_step_index"],
        number=card["revision"],
        state="open",
        edited=edited,
        traits=Traits(**traits),
        **{name: card[name] for name in names},
    )
