"""The Gateway's JSON: envelopes as its Go code writes them, and what a trip through float64 does to numbers.

``daemon/dev`` and its tests call this. It never decides anything and keeps no state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

Json = dict[str, Any]

CHUNK_LIMIT = 16384  # bytes of data in one CHUNK (agent.chunk_max_frame_bytes)

_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_ESCAPE_TABLE = str.maketrans(_ESCAPES)
_EXACT = 2**53


def encode(value: object) -> bytes:
    """Compact JSON with ``< > &`` and the two line separators escaped, other text raw, lone surrogates replaced."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPE_TABLE)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def decode(body: bytes) -> Any:
    """Parses JSON as Go does: no NaN, no Infinity, no number that float64 cannot hold. Raises ValueError."""
    return json.loads(body, parse_constant=_refuse, parse_float=_finite)


def through_float64(value: Any) -> Any:
    """The value after Go decoded it into ``any`` and encoded it again: rounded numbers, sorted keys."""
    match value:
        case bool() | None | str():
            return value
        case int() | float():
            return _number(float(value))
        case dict():
            return {str(key): through_float64(value[key]) for key in sorted(value, key=str)}
        case list() | tuple():
            return [through_float64(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not JSON")


def envelope(kind: str, agent_id: str, req_id: str | None, payload: Json | None) -> Json:
    """One event as an agent sends it; what is empty is left out. ``ts`` is in unix seconds."""
    made: Json = {"v": 1, "type": kind, "agent_id": agent_id}
    if req_id:
        made["req_id"] = req_id
    made["ts"] = int(time.time())
    if payload is not None:
        made["payload"] = payload
    return made


def pieces(text: str, limit: int = CHUNK_LIMIT) -> Iterator[str]:
    """Cuts text into parts of at most ``limit`` bytes of UTF-8, never inside a character."""
    data = text.encode("utf-8", "replace")
    start = 0
    while start < len(data):
        end = min(start + limit, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:  # a continuation byte: step back to its character
            end -= 1
        yield data[start:end].decode()
        start = end


def _number(value: float) -> int | float:
    if not math.isfinite(value):
        raise ValueError("not a JSON number")
    if not value.is_integer() or abs(value) >= 1e21:
        return value
    return int(value) if abs(value) <= _EXACT else int(Decimal(repr(value)))  # Go prints the shortest digits, then 0s


def _refuse(literal: str) -> float:
    raise ValueError(f"{literal} is not JSON")


def _finite(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise ValueError(f"{literal} does not fit float64")
    return value
