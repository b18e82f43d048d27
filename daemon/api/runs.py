"""Runs over HTTP: created, listed and read, with the history of their events and tickets to watch them."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import orjson
import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import Field

from daemon.api.agents import refused
from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.intake import DIGITS, Body, Id, Line, Path, Query, Whole
from daemon.api.pages import PageQuery, page
from daemon.api.permits import Unauthorized, permit
from daemon.api.repeats import Repeatable, once
from daemon.api.selection import Selection
from daemon.api.shapes import json_response, moment, run_item, run_shape
from daemon.api.workflows import missing
from daemon.errors import Conflict, NotFound
from daemon.machine.commands import RunId
from daemon.machine.spec import MAX_RUN_TIMEOUT_MS
from daemon.store.audit import Deed
from daemon.store.once import Repeated
from daemon.store.runs import RunHead
from daemon.store.workflows import Place


class RunPath(Path):
    run_id: Id


class NewRun(Body):
    """Body of ``POST /v1/workflow-runs``. Unknown fields are ignored, as v0 did."""

    workflow_id: Id
    run_timeout_ms: Annotated[int, Field(ge=1, le=MAX_RUN_TIMEOUT_MS)] | None = Field(
        None, description="This run's own deadline, instead of its workflow's."
    )


class RunsQuery(Selection, PageQuery):
    q: Line | None = Field(None, description="Text in the title, whatever its case; your runs are read one by one.")


class HistoryQuery(Query):
    after_seq: Whole = 0
    limit: Annotated[int, Field(ge=1, le=1000, description="Events of this page."), DIGITS] = 200


async def create(request: web.Request, headers: Repeatable, body: NewRun) -> web.Response:
    """Create a run of a snapshot of the workflow, and start it: on disk before it is answered, started without wait.

    Refused where you may not use one of its agents (403 `agent_unauthorized`, which says which and why).
    """
    context, run_id = request.app[CONTEXT], RunId(uuid7.uuid7())
    try:
        created = await context.runs.create_of(
            run_id=run_id,
            workflow_id=body.workflow_id,
            caller=request[CALLER],
            nonce=secrets.token_bytes(16),
            command_id=uuid7.uuid7(),
            origin=request[ORIGIN],
            permit=permit(request[CALLER]),
            run_timeout_ms=body.run_timeout_ms,
            once=once(request, headers, body, str(run_id)),
        )
    except Repeated as first:
        return await answer_run(request, UUID(first.made))
    except Unauthorized as fault:
        deed = Deed(action="run.created", agent_id=fault.agent_id, target=str(body.workflow_id), comment=fault.detail)
        refused(request, fault, deed)
    if created is None:
        if await context.workflows.get(body.workflow_id, user_id=request[CALLER].user_id) is None:
            raise missing()
        raise Conflict("The workflow is archived: it starts nothing any more.", code="workflow_archived")
    context.bell.ring(created.head.id)
    return json_response(run_shape(created))


async def get(request: web.Request, path: RunPath) -> web.Response:
    """The run as stored."""
    return await answer_run(request, path.run_id)


async def listed(request: web.Request, query: RunsQuery) -> web.Response:
    """Your runs, newest first."""
    wanted = query.filter(title_has=query.q, after=query.place)
    found = await request.app[CONTEXT].runs.listed(wanted, user_id=request[CALLER].user_id, limit=query.limit + 1)
    return page(found, query, run_item, lambda item: Place(item.head.created_at, item.head.id))


async def history(request: web.Request, path: RunPath, query: HistoryQuery) -> web.Response:
    """The run's events as pages, each as a stream tells it."""
    head = await seen_head(request, path.run_id)
    log = request.app[CONTEXT].log
    found = await log.events(head.id, after_seq=query.after_seq, limit=query.limit + 1)
    items = found[: query.limit]
    more = items[-1][0] if len(found) > query.limit else None
    return json_response({"items": [orjson.Fragment(told) for _, told in items], "next_after_seq": more})


async def ticket(request: web.Request, path: RunPath) -> web.Response:
    """A ticket for the run's event stream, read-only, to be used within a minute by what can send no headers."""
    head, context = await seen_head(request, path.run_id), request.app[CONTEXT]
    made, ends = await context.callers.ticket(request[CALLER], str(head.id))
    body: dict[str, Any] = {"ticket": made, "expires_at": moment(datetime.fromtimestamp(ends, UTC))}
    return json_response(body, headers={"Cache-Control": "no-store"})


def missing_run() -> NotFound:
    """There is none, or none that the caller may see."""
    return NotFound("There is no such run, or it is not yours.")


async def seen_head(request: web.Request, run_id: UUID) -> RunHead:
    """The hot row of a run that the caller may see. Raises NotFound."""
    head = await request.app[CONTEXT].runs.head(run_id, by=request[CALLER])
    if head is None:
        raise missing_run()
    return head


async def answer_run(
    request: web.Request, run_id: UUID, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """The Run as the body of an answer. Raises NotFound."""
    view = await request.app[CONTEXT].runs.view(run_id, by=request[CALLER])
    if view is None:
        raise missing_run()
    return json_response(run_shape(view), status=status, headers=headers)
