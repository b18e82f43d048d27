"""JSON that Postgres or orjson could not keep, mended rather than lost: NUL, lone surrogates, no UTF-8, too deep.

Used by ``wire`` for what Gateways send, and by the import of v0. What any agent may write costs milliseconds here, not
tenths of a second: the event loop of the node waits meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any

import orjson

MAX_DEPTH = 200
"""JSON nested deeper is cut there: orjson reads deeper than it can write (254)."""
_BACKSLASH = rb"\\"
_ASIDE = b"\x00\x00"
"""An escaped backslash, put aside while escapes are looked at: so each backslash that is left begins one. No JSON has
these bytes."""
_LONE = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[c-fC-F][0-9a-fA-F]{2}(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
"""A high surrogate that no low one follows, or a low one that no high one is before (RFC 8259 §8.2)."""


def read(raw: bytes) -> object:
    """The JSON value; None when it is no JSON at all. Lone surrogates and bytes that are no UTF-8 become U+FFFD."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    if b"\x00" in raw:
        return None
    mended = _LONE.sub(rb"\\ufffd", raw.replace(_BACKSLASH, _ASIDE)).replace(_ASIDE, _BACKSLASH)
    try:
        return orjson.loads(mended.decode(errors="replace"))
    except orjson.JSONDecodeError:
        return None


def read_without_nul(raw: bytes) -> object:
    """As ``read``, with U+FFFD in the place of every NUL character, keys included."""
    return read(raw.replace(_BACKSLASH, _ASIDE).replace(rb"\u0000", rb"\ufffd").replace(_ASIDE, _BACKSLASH))


def cut(value: dict[str, Any]) -> None:
    """Put U+FFFD in the place of everything in ``value`` that is nested too deep; by levels, since most have few."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH - 1):
        within = chain.from_iterable(outer.values() if type(outer) is dict else outer for outer in level if outer)
        level = [inner for inner in within if type(inner) is dict or type(inner) is list]
        if not level:
            return
    for outer in level:
        items: Iterable[tuple[Any, Any]] = outer.items() if type(outer) is dict else enumerate(outer)
        for key, inner in items:
            if type(inner) is dict or type(inner) is list:
                outer[key] = "\ufffd"


def storable(value: Any, depth: int = 0) -> Any:
    """A copy of a JSON value with every NUL character replaced, and cut. It takes its time: not for the event loop."""
    match value:
        case str():
            return value.replace("\x00", "\ufffd")
        case list() | dict() if depth >= MAX_DEPTH:
            return "\ufffd"
        case list():
            return [storable(item, depth + 1) for item in value]
        case dict():
            return {storable(key): storable(item, depth + 1) for key, item in value.items()}
        case _:
            return value
