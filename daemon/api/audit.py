"""The audit log over HTTP: pages for people, NDJSON of everything for other systems. Reads only.

An export is read in chunks, each a query from the place where the last one ended: it holds no connection to Postgres
while its client is slow, and no more than a chunk in memory, however long the log is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from aiohttp import web
from pydantic import Field

from daemon.api.context import CALLER, CONTEXT
from daemon.api.intake import Id, Line, Moment
from daemon.api.pages import PageQuery, page
from daemon.api.shapes import moment
from daemon.errors import StoreUnavailable, Unauthenticated
from daemon.store import trail
from daemon.store.trail import Search, Spot
from daemon.store.workflows import Place
from daemon.telemetry import log

NDJSON = "application/x-ndjson"
CHUNK = 500
"""Lines of an export that are read and held at once."""
WRITE_TIMEOUT_S = 30.0
_LAST_ID = 2**63 - 1


class AuditQuery(PageQuery):
    since: Moment | None = Field(None, description="Then or later.")
    until: Moment | None = Field(None, description="Earlier.")
    actor: Line | None = Field(None, description="Whose word it was.")
    action: Line | None = Field(None, description="How the action begins: `run.`, `run.approve`.")
    outcome: Literal["applied", "refused"] | None = None
    run_id: Id | None = None
    agent_id: Line | None = None
    q: Line | None = Field(None, description="Text in what was said, whatever its case; lines are read one by one.")
    format: Annotated[Literal["json", "ndjson"] | None, Field(description="Outweighs the header `Accept`.")] = None

    @property
    def spot(self) -> Spot | None:
        """Where the page before ended."""
        place = self.place
        return Spot(place.created_at, min(place.id.int, _LAST_ID)) if place is not None else None


async def listed(request: web.Request, query: AuditQuery) -> web.StreamResponse:
    """The audit, newest first: to an admin all of it, to you what is yours and what you did.

    With `Accept: application/x-ndjson`, or `format=ndjson`, it is everything that matches (with a `limit`: so many),
    streamed, a line each. A stream whose connection breaks, as it does at its token's end, is not whole.
    """
    caller = request[CALLER]
    wanted = Search(
        since=query.since,
        until=query.until,
        actor=query.actor,
        action=query.action,
        outcome=query.outcome,
        run_id=query.run_id,
        agent_id=query.agent_id,
        has=query.q,
        after=query.spot,
    )
    sees = None if caller.admin else caller.user_id
    if _wants_ndjson(request, query):
        most = query.limit if "limit" in query.model_fields_set else None
        return await _export(request, wanted, sees, most)
    found = await request.app[CONTEXT].trail.listed(wanted, user_id=sees, limit=query.limit + 1)
    return page(found, query, lambda line: _shape(line, sees), lambda line: Place(line.at, UUID(int=line.id)))


def _wants_ndjson(request: web.Request, query: AuditQuery) -> bool:
    if query.format is not None:
        return query.format == "ndjson"
    kinds = request.headers.get("Accept", "").split(",")
    return any(kind.partition(";")[0].strip().lower() == NDJSON for kind in kinds)


async def _export(request: web.Request, wanted: Search, sees: str | None, most: int | None) -> web.StreamResponse:
    """Everything that matches, at most ``most``; until the client goes, or its token is good no more."""
    callers = request.app[CONTEXT].callers
    found = await _chunk(request, wanted, sees, most)  # before the status: Postgres may be away
    response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"})
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    try:
        while found:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await response.write(b"".join(_ndjson(line, sees) for line in found))
            most = most - len(found) if most is not None else None
            last = found[-1]
            found = await _chunk(request, replace(wanted, after=Spot(last.at, last.id)), sees, most)
            if found:
                await callers.require_good(request[CALLER])
    except (ConnectionError, TimeoutError, StoreUnavailable, Unauthenticated) as fault:
        log.info("an export of the audit was cut off", fault=str(fault) or type(fault).__name__)
        if request.transport is not None:
            request.transport.abort()  # without the last chunk of HTTP, so that nobody takes a part for the whole
    return response


async def _chunk(request: web.Request, wanted: Search, sees: str | None, most: int | None) -> Sequence[trail.Line]:
    limit = CHUNK if most is None else min(CHUNK, most)
    return await request.app[CONTEXT].trail.listed(wanted, user_id=sees, limit=limit) if limit else ()


def _ndjson(line: trail.Line, sees: str | None) -> bytes:
    return orjson.dumps(_shape(line, sees), option=orjson.OPT_APPEND_NEWLINE)


def _shape(line: trail.Line, sees: str | None) -> dict[str, Any]:
    """A line as its reader (None: an admin) may see it: whose other things are is not theirs to know."""
    return {
        "id": line.id,
        "at": moment(line.at),
        "actor": line.actor,
        "roles": line.roles,
        "via": line.via,
        "address": line.address,
        "client": line.client,
        "action": line.action,
        "outcome": line.outcome,
        "code": line.code,
        "run_id": str(line.run_id) if line.run_id is not None else None,
        "owner": line.owner if sees is None or line.owner == sees else None,
        "step_id": line.step_id,
        "agent_id": line.agent_id,
        "target": line.target,
        "digest": line.digest,
        "comment": line.comment,
        "detail": line.detail,
    }
