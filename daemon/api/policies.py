"""Tool policies over HTTP, for admins: what is said about tools, whatever they say of themselves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import Field

from daemon.api.context import CONTEXT, ORIGIN
from daemon.api.intake import Body, Id, Path
from daemon.api.shapes import json_response, moment
from daemon.errors import Invalid, NotFound
from daemon.store.policies import SAYS, KeptPolicy

Pattern = Annotated[str, Field(min_length=1, max_length=255)]


class PolicyPath(Path):
    policy_id: Id


class NewPolicy(Body):
    """Body of ``POST /v1/tool-policies`` and of ``PUT``. What is null or left out says nothing."""

    agents: Pattern = Field("*", description="Pattern over ids of agents; `*` stands for any text.")
    tools: Pattern = Field(description="Pattern over names of tools.")
    risk: Literal["low", "medium", "high"] | None = None
    writes: bool | None = None
    open_world: bool | None = None
    idempotent: bool | None = None
    requires_approval: bool | None = Field(None, description="Each call waits for a person, whatever workflows say.")
    denied: bool | None = Field(None, description="Nobody's run calls it.")
    note: Annotated[str, Field(max_length=1000)] | None = None

    @property
    def said(self) -> dict[str, Any]:
        """Its fields, if it says anything. Raises Invalid."""
        said = self.model_dump()
        if all(said[name] is None for name in SAYS):
            raise Invalid(f"The policy says nothing: give at least one of {', '.join(SAYS)}.")
        return said


async def listed(request: web.Request) -> web.Response:
    """Every policy, by its patterns."""
    found = await request.app[CONTEXT].policies.all()
    return json_response({"items": [_shape(policy) for policy in found]})


async def add(request: web.Request, body: NewPolicy) -> web.Response:
    """A new policy. Of those that fit a call, the most specific one that says something of a trait is heard."""
    context = request.app[CONTEXT]
    made = await context.policies.add(uuid7.uuid7(), body.said, request[ORIGIN])
    await context.authority_changed()
    return json_response(_shape(made))


async def replace(request: web.Request, path: PolicyPath, body: NewPolicy) -> web.Response:
    """Put this in the place of that policy."""
    context = request.app[CONTEXT]
    kept = await context.policies.replace(path.policy_id, body.said, request[ORIGIN])
    if kept is None:
        raise _missing()
    await context.authority_changed()
    return json_response(_shape(kept))


async def delete(request: web.Request, path: PolicyPath) -> web.Response:
    """It says nothing any more; answers what it said."""
    context = request.app[CONTEXT]
    gone = await context.policies.delete(path.policy_id, request[ORIGIN])
    if gone is None:
        raise _missing()
    await context.authority_changed()
    return json_response(_shape(gone))


def _missing() -> NotFound:
    return NotFound("There is no such policy.")


def _shape(policy: KeptPolicy) -> dict[str, Any]:
    return {
        "policy_id": str(policy.id),
        "agents": policy.agents,
        "tools": policy.tools,
        **{name: getattr(policy, name) for name in SAYS},
        "note": policy.note,
        "set_by": policy.set_by,
        "set_at": moment(policy.set_at),
    }
