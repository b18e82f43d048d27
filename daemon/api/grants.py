"""Grants over HTTP: what an agent's owner lets users and groups do with it. For its owner and admins only."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import Field

from daemon.api.agents import AgentPath, owned
from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.intake import Body, Id, Moment
from daemon.api.shapes import json_response, moment
from daemon.errors import Invalid, NotFound
from daemon.store.grants import KeptGrant

Pattern = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^*]*(\*[^*]*){0,4}$")]


class GrantPath(AgentPath):
    grant_id: Id


class NewGrant(Body):
    """Body of ``POST …/grants``."""

    subject: Annotated[str, Field(max_length=261, pattern=r"^(user|group):.")] = Field(
        description="`user:<id>` or `group:<name>`, as tokens name them."
    )
    permission: Literal["use", "approve", "view"]
    tools: Annotated[list[Pattern], Field(min_length=1, max_length=20)] = Field(
        ["*"], description="Patterns over names of tools; `*` stands for any text."
    )
    expires_at: Moment | None = None


async def listed(request: web.Request, path: AgentPath) -> web.Response:
    """Every grant of the agent, oldest first, expired ones too."""
    await owned(request, path.agent_id, "grant.read")
    found = await request.app[CONTEXT].grants.of(path.agent_id)
    return json_response({"items": [_shape(grant) for grant in found]})


async def add(request: web.Request, path: AgentPath, body: NewGrant) -> web.Response:
    """Let somebody use it, approve its calls, or see it. The same grant twice is the first one."""
    context, caller = request.app[CONTEXT], request[CALLER]
    await owned(request, path.agent_id, "grant.added")
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise Invalid(faults=(("/expires_at", "is over already"),))
    made = await context.grants.add(
        grant_id=uuid7.uuid7(),
        agent_id=path.agent_id,
        subject=body.subject,
        permission=body.permission,
        tools=sorted(set(body.tools)),
        expires_at=body.expires_at,
        origin=request[ORIGIN],
        owned_by=None if caller.admin else caller.user_id,
    )
    await context.authority_changed()
    return json_response(_shape(made))


async def revoke(request: web.Request, path: GrantPath) -> web.Response:
    """Take a grant back: before the next call of every run, those under way included."""
    context, caller = request.app[CONTEXT], request[CALLER]
    await owned(request, path.agent_id, "grant.revoked")
    owner = None if caller.admin else caller.user_id
    gone = await context.grants.revoke(path.agent_id, path.grant_id, request[ORIGIN], owned_by=owner)
    if gone is None:
        raise NotFound("There is no such grant of this agent.")
    await context.authority_changed()
    return json_response(_shape(gone))


def _shape(grant: KeptGrant) -> dict[str, Any]:
    return {
        "grant_id": str(grant.id),
        "agent_id": grant.agent_id,
        "subject": grant.subject,
        "permission": grant.permission,
        "tools": list(grant.tools),
        "expires_at": moment(grant.expires_at) if grant.expires_at is not None else None,
        "granted_by": grant.granted_by,
        "granted_at": moment(grant.granted_at),
    }
