"""Templates over HTTP: ``POST /v1/workflows``."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from daemon.api.context import CALLER, CONTEXT
from daemon.api.gate import parse, read_json
from daemon.api.shapes import json_response, moment
from daemon.errors import Invalid
from daemon.machine.spec import Name, parse_spec
from daemon.store.workflows import Workflow


class NewWorkflow(BaseModel):
    """Body of ``POST /v1/workflows``. Unknown fields beside these are ignored, as v0 did; inside ``spec`` refused."""

    model_config = ConfigDict(extra="ignore", strict=True)

    title: Name
    description: Annotated[str, Field(max_length=10_000)] | None = None
    spec: dict[str, Any]


async def create(request: web.Request) -> web.Response:
    """Store a template; its title and description win over the spec's."""
    context = request.app[CONTEXT]
    body = parse(NewWorkflow, await read_json(request))
    given = {**body.spec, "title": body.title}
    if body.description is not None:
        given["description"] = body.description
    spec = parse_spec(given)
    workflow = await context.workflows.add(
        workflow_id=uuid7.uuid7(),
        user_id=request[CALLER].user_id,
        title=spec.title,
        description=spec.description,
        spec=_as_text(spec.model_dump(mode="json")),
    )
    return json_response(_shape(workflow))


def _as_text(spec: dict[str, Any]) -> str:
    try:
        return orjson.dumps(spec).decode()
    except orjson.JSONEncodeError as fault:
        raise Invalid(f"The spec cannot be stored: {fault}.", code="invalid_spec") from None


def _shape(workflow: Workflow) -> dict[str, Any]:
    return {
        "workflow_id": str(workflow.id),
        "title": workflow.title,
        "description": workflow.description,
        "spec": orjson.Fragment(workflow.spec),
        "created_at": moment(workflow.created_at),
        "updated_at": moment(workflow.updated_at),
    }
