"""For schemathesis: the rules about requests that stand in the document's words, because JSON Schema cannot say them.

Loaded by it through ``schemathesis.toml``. What breaks them is a 422 by its own tests (``bad_requests``), so it is not
sent as if it were good.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis


@schemathesis.hook
def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
    """Integers are within 2^53, whole ones have no fraction, step ids are unique; what is said says something."""
    return _fits(body) and _ids_differ(body) and _asks(body) and _says(body)


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Any, kwargs: Any) -> None:
    """A key is new for each new request, an end is still to come, and the steps that schemathesis repeats to fill a
    list get ids of their own. What its phase "coverage" makes of each field in turn, which no filter sees, says
    something too.

    A request that lacks its token on purpose stays as it is.
    """
    if case.meta is not None and getattr(case.meta.phase.data, "parameter", None) == "Authorization":
        return
    if re.fullmatch("[!-~]{1,255}", str((case.headers or {}).get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
    if isinstance(case.body, dict) and _is_over(case.body.get("expires_at")):
        case.body["expires_at"] = "2099-01-01T00:00:00Z"
    if isinstance(case.body, dict) and not _says(case.body):
        case.body = _saying(case.body)
    if not _ids_differ(case.body):
        steps = case.body["spec"]["steps"]
        case.body["spec"]["steps"] = [
            one | {"id": f"s{index}"} if isinstance(one, dict) and isinstance(one.get("id"), str) and one["id"] else one
            for index, one in enumerate(steps)
        ]


def _is_over(said: Any) -> bool:
    try:
        return datetime.fromisoformat(said) < datetime.now(UTC) + timedelta(minutes=10)
    except (TypeError, ValueError):  # no moment at all, or one without its zone
        return False


def _fits(value: Any) -> bool:
    match value:
        case bool():
            return True
        case int():
            return -(2**53) <= value <= 2**53
        case float():
            return not value.is_integer()
        case dict():
            return all(_fits(one) for one in value.values())
        case list():
            return all(_fits(one) for one in value)
    return True


def _asks(body: Any) -> bool:
    match body:
        case {"filter": dict(wanted)}:
            return not wanted or any(value is not None for value in wanted.values())
    return True


def _says(body: Any) -> bool:
    """A policy says something of tools, a hold names what its scope wants, and a grant is not over yet."""
    match body:
        case {"subject": _, "expires_at": str(at)}:
            return at > "2100"
        case {"scope": scope, "reason": _}:
            return (body.get("target") is None) == (scope == "everything")
        case {"tools": str()}:
            traits = ("risk", "writes", "open_world", "idempotent", "requires_approval", "denied")
            return any(body.get(trait) is not None for trait in traits)
    return True


def _saying(body: dict[str, Any]) -> dict[str, Any]:
    """A policy with a risk, and a hold with the target that its scope wants; other faults stay in them."""
    match body:
        case {"scope": "everything", "reason": _, "target": str(target)} if 0 < len(target) <= 255:
            return body | {"target": None}
        case {"scope": "agent" | "user", "reason": _} if body.get("target") is None:
            return body | {"target": "x"}
        case {"tools": str()}:
            return body | {"risk": "low"}
    return body


def _ids_differ(body: Any) -> bool:
    match body:
        case {"spec": {"steps": [*steps]}}:
            ids = [repr(one.get("id")) for one in steps if isinstance(one, dict)]
            return len(set(ids)) == len(ids)
    return True
