"""Templates over HTTP: stored, listed, renewed and archived. What runs of them do is ``runs``' business."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import Field, create_model

from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.intake import Body, Flag, Headers, Id, Line, Path
from daemon.api.pages import PageQuery, page
from daemon.api.permits import warnings
from daemon.api.repeats import Repeatable, once
from daemon.api.shapes import json_response, moment
from daemon.errors import Conflict, Invalid, NotFound, Stale, StoreUnavailable
from daemon.machine.spec import Name, WorkflowSpec, parse_spec
from daemon.store.once import Repeated
from daemon.store.workflows import Place, Workflow, WorkflowItem
from daemon.telemetry import log

GivenSpec = create_model("GivenSpec", __base__=WorkflowSpec, title=(Name | None, None))
GivenSpec.__doc__ = "A list of strictly serial steps; the workflow's own title and description win over these."


class WorkflowPath(Path):
    workflow_id: Id


class NewWorkflow(Body):
    """Body of ``POST /v1/workflows``. Unknown fields beside these are ignored, as v0 did; inside ``spec`` refused."""

    title: Name = Field(description="What people call the workflow.")
    description: Annotated[str, Field(max_length=10_000)] | None = None
    spec: GivenSpec = Field(description="Its steps, one after another.")


class NextWorkflow(NewWorkflow):
    """Body of ``PUT /v1/workflows/{workflow_id}``: the whole of the next version."""

    version: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = Field(
        None, description="The version that this one follows; if another stands there by now, nothing is changed."
    )


class IfMatch(Headers):
    if_match: str | None = Field(
        None,
        alias="If-Match",
        description="The ETag of the version that this one follows, instead of `version`.",
    )


class WorkflowsQuery(PageQuery):
    q: Line | None = Field(None, description="Text in the title, whatever its case.")
    archived: Flag = Field(False, description="Archived ones too.")


async def create(request: web.Request, headers: Repeatable, body: NewWorkflow) -> web.Response:
    """Store a template; its title and description win over the spec's."""
    context, caller = request.app[CONTEXT], request[CALLER]
    spec, workflow_id = _spec(body), uuid7.uuid7()
    try:
        workflow = await context.workflows.add(
            workflow_id=workflow_id,
            user_id=caller.user_id,
            title=spec.title,
            description=spec.description,
            spec=_as_text(spec.model_dump(mode="json")),
            origin=request[ORIGIN],
            token_maker=caller.token_maker,
            once=once(request, headers, body, str(workflow_id)),
        )
    except Repeated as first:
        workflow = await _found(request, first.made)
    return await _saved(request, workflow)


async def get(request: web.Request, path: WorkflowPath) -> web.Response:
    """The workflow as it stands, archived or not."""
    return _answer(await _found(request, path.workflow_id))


async def listed(request: web.Request, query: WorkflowsQuery) -> web.Response:
    """Your workflows, newest first."""
    found = await request.app[CONTEXT].workflows.listed(
        user_id=request[CALLER].user_id,
        archived=query.archived,
        title_has=query.q,
        after=query.place,
        limit=query.limit + 1,
    )
    return page(found, query, _item, lambda item: Place(item.created_at, item.id))


async def renew(request: web.Request, path: WorkflowPath, headers: IfMatch, body: NextWorkflow) -> web.Response:
    """Put a new version in its place. Runs that there are keep the snapshot they were started with."""
    spec, expected, caller = _spec(body), body.version, request[CALLER]
    if headers.if_match is not None and headers.if_match != "*":
        expected = _version(headers.if_match)
    renewed = await request.app[CONTEXT].workflows.renew(
        path.workflow_id,
        user_id=caller.user_id,
        title=spec.title,
        description=spec.description,
        spec=_as_text(spec.model_dump(mode="json")),
        version=expected,
        origin=request[ORIGIN],
        token_maker=caller.token_maker,
    )
    if renewed is None:
        stands = await _found(request, path.workflow_id)
        if stands.archived_at is not None:
            raise Conflict("The workflow is archived; nothing is changed in it any more.", code="workflow_archived")
        if expected == 0:
            raise Stale(
                f"If-Match names no version of a workflow: send the ETag as a GET tells it, now '\"{stands.version}\"'."
            )
        raise Stale(f"The workflow is at version {stands.version}, which is not the one you name: read it again.")
    return await _saved(request, renewed)


async def archive(request: web.Request, path: WorkflowPath) -> web.Response:
    """Archive it: it can be read and starts nothing any more; runs that there are go on. Again is the same."""
    archived = await request.app[CONTEXT].workflows.archive(
        path.workflow_id, user_id=request[CALLER].user_id, origin=request[ORIGIN]
    )
    if archived is None:
        raise missing()
    return _answer(archived)


def missing() -> NotFound:
    """There is none."""
    return NotFound("There is no such workflow, or it is not yours.")


async def _found(request: web.Request, workflow_id: Any) -> Workflow:
    found = await request.app[CONTEXT].workflows.get(workflow_id, user_id=request[CALLER].user_id)
    if found is None:
        raise missing()
    return found


def _spec(body: NewWorkflow) -> WorkflowSpec:
    """The spec with the body's title and description. Raises Invalid."""
    given = {**body.spec.model_dump(exclude_unset=True), "title": body.title}
    if body.description is not None:
        given["description"] = body.description
    return parse_spec(given)


def _version(etag: str) -> int:
    """The version that an ETag names; 0, which no workflow has, for any other text."""
    number = etag[1:-1]
    ours = number.isascii() and number.isdigit() and len(number) < 10 and etag == f'"{number}"'
    return int(number) if ours else 0


def _as_text(spec: dict[str, Any]) -> str:
    try:
        return orjson.dumps(spec).decode()
    except orjson.JSONEncodeError as fault:
        raise Invalid(f"The spec cannot be stored: {fault}.", code="invalid_spec") from None


async def _saved(request: web.Request, workflow: Workflow) -> web.Response:
    """The workflow, with what its steps would be refused for. It is stored: what cannot be looked up is not told."""
    try:
        warned = await warnings(request, workflow.spec)
    except StoreUnavailable as fault:
        log.warning("a workflow was saved without a look at its agents", fault=str(fault))
        warned = []
    return _answer(workflow, **({"warnings": warned} if warned else {}))


def _answer(workflow: Workflow, **more: Any) -> web.Response:
    body = {
        "workflow_id": str(workflow.id),
        "title": workflow.title,
        "description": workflow.description,
        "spec": orjson.Fragment(workflow.spec),
        "version": workflow.version,
        "archived_at": _moment(workflow),
        "created_at": moment(workflow.created_at),
        "updated_at": moment(workflow.updated_at),
        **more,
    }
    return json_response(body, headers={"ETag": f'"{workflow.version}"'})


def _item(item: WorkflowItem) -> dict[str, Any]:
    return {
        "workflow_id": str(item.id),
        "title": item.title,
        "description": item.description,
        "version": item.version,
        "step_count": item.step_count,
        "archived_at": _moment(item),
        "created_at": moment(item.created_at),
        "updated_at": moment(item.updated_at),
    }


def _moment(workflow: Workflow | WorkflowItem) -> str | None:
    return None if workflow.archived_at is None else moment(workflow.archived_at)
