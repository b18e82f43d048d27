"""Pages of lists: newest first, by the place where the last one ended, so that what is new moves nothing.

A cursor is opaque to clients: 24 bytes (the microsecond of creation and the id) as base64url. Any such text means some
place, so a cursor cannot be forged into a fault.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar
from uuid import UUID

from aiohttp import web
from pydantic import Field

from daemon.api.intake import DIGITS, Query
from daemon.api.shapes import json_response
from daemon.store.workflows import Place

MOST = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)
_T = TypeVar("_T")


class PageQuery(Query):
    """What every list takes."""

    limit: Annotated[int, Field(ge=1, le=MOST, description="Items of this page."), DIGITS] = 50
    cursor: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{32}$")] | None = Field(
        None, description="`next_cursor` of the page before."
    )

    @property
    def place(self) -> Place | None:
        """Where the page before ended."""
        if self.cursor is None:
            return None
        raw = urlsafe_b64decode(self.cursor)
        try:
            at = _EPOCH + timedelta(microseconds=int.from_bytes(raw[:8], signed=True))
        except OverflowError:
            at = _LAST if raw[0] < 128 else _FIRST
        return Place(min(max(at, _FIRST), _LAST), UUID(bytes=raw[8:]))


def page(
    found: Sequence[_T], query: PageQuery, shape: Callable[[_T], dict[str, Any]], place: Callable[[_T], Place]
) -> web.Response:
    """The answer, of one item more than the page holds if there are more."""
    items = found[: query.limit]
    end = place(items[-1]) if len(found) > query.limit else None
    return page_until(end, [shape(item) for item in items])


def page_until(end: Place | None, items: Sequence[dict[str, Any]]) -> web.Response:
    """The answer of a page that ends at this place; None: it is the last."""
    return json_response({"items": items, "next_cursor": _cursor(end) if end is not None else None})


def _cursor(place: Place) -> str:
    micros = (place.created_at - _EPOCH) // timedelta(microseconds=1)
    return urlsafe_b64encode(micros.to_bytes(8, signed=True) + place.id.bytes).decode()
