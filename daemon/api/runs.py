"""Runs over HTTP: created and read. ``POST /v1/workflow-runs``, ``GET /v1/workflow-runs/{run_id}``."""

from __future__ import annotations

import secrets
from typing import Annotated
from uuid import UUID

import orjson
import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from daemon.api.context import CALLER, CONTEXT, Context
from daemon.api.gate import parse, path_id, read_json
from daemon.api.shapes import json_response, run_shape
from daemon.errors import Invalid, NotFound
from daemon.machine.commands import RunId
from daemon.machine.spec import MAX_RUN_TIMEOUT_MS
from daemon.store.runs import RunView


class NewRun(BaseModel):
    """Body of ``POST /v1/workflow-runs``. Unknown fields are ignored, as v0 did."""

    model_config = ConfigDict(extra="ignore", strict=True)

    workflow_id: str
    run_timeout_ms: Annotated[int, Field(ge=1, le=MAX_RUN_TIMEOUT_MS)] | None = None
    """This run's own deadline, instead of its workflow's."""


async def create(request: web.Request) -> web.Response:
    """Create a run of a snapshot of the workflow, and start it: on disk before it is answered, started without wait."""
    context, user = request.app[CONTEXT], request[CALLER].user_id
    body = parse(NewRun, await read_json(request))
    try:
        workflow_id = UUID(body.workflow_id)
    except ValueError:
        raise Invalid(faults=(("/workflow_id", "must be a UUID"),)) from None
    created = await _created(context, user, workflow_id, body)
    if created is None:
        raise NotFound("There is no such workflow, or it is not yours.")
    context.bell.ring(created.head.id)
    return json_response(run_shape(created))


async def _created(context: Context, user: str, workflow_id: UUID, body: NewRun) -> RunView | None:
    """The run, once on disk. It keeps the workflow's spec, the same text, unless it differs from its workflow."""
    run_id, nonce, command_id = RunId(uuid7.uuid7()), secrets.token_bytes(16), uuid7.uuid7()
    if body.run_timeout_ms is None:
        return await context.runs.create_of(
            run_id=run_id, workflow_id=workflow_id, user_id=user, nonce=nonce, command_id=command_id
        )
    workflow = await context.workflows.get(workflow_id, user_id=user)
    if workflow is None:
        return None
    return await context.runs.create(
        run_id=run_id,
        workflow_id=workflow_id,
        user_id=user,
        nonce=nonce,
        snapshot=orjson.dumps(orjson.loads(workflow.spec) | {"run_timeout_ms": body.run_timeout_ms}).decode(),
        command_id=command_id,
    )


async def get(request: web.Request) -> web.Response:
    """The run as stored."""
    return await answer_run(request, path_id(request, "run_id"))


async def answer_run(
    request: web.Request, run_id: UUID, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """The Run as the body of an answer. Raises NotFound."""
    view = await request.app[CONTEXT].runs.view(run_id, user_id=request[CALLER].user_id)
    if view is None:
        raise NotFound("There is no such run, or it is not yours.")
    return json_response(run_shape(view), status=status, headers=headers)
