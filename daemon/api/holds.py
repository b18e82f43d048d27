"""The emergency stop over HTTP: nothing leaves for what is held; runs wait visibly until it is released."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import Field

from daemon.api.agents import owned, refused
from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.intake import Body, Flag, Id, Path
from daemon.api.pages import PageQuery, page
from daemon.api.shapes import json_response, moment
from daemon.auth.access import CERTAIN_S
from daemon.errors import Forbidden, Invalid, NotFound
from daemon.store.audit import Deed
from daemon.store.holds import Hold, Scope
from daemon.store.workflows import Place


class HoldPath(Path):
    hold_id: Id


class NewHold(Body):
    """Body of ``POST /v1/holds``."""

    scope: Scope
    target: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        None, description="The agent's or the user's id; none for everything."
    )
    reason: Annotated[str, Field(min_length=1, max_length=1000)]


class HoldsQuery(PageQuery):
    released: Flag = Field(False, description="Those that were released too.")


async def listed(request: web.Request, query: HoldsQuery) -> web.Response:
    """What is held, newest first: an admin sees all; others what stops everything, them, or an agent that they see."""
    caller = request[CALLER]
    found = await request.app[CONTEXT].holds.listed(
        user_id=caller.user_id,
        subjects=caller.subjects,
        everything=caller.admin,
        standing=not query.released,
        after=query.place,
        limit=query.limit + 1,
    )
    return page(found, query, _shape, lambda hold: Place(hold.held_at, hold.id))


async def hold(request: web.Request, body: NewHold) -> web.Response:
    """Hold an agent, a user or everything: an admin; an agent's owner that agent. What is held already stays so.

    When this is answered, no call leaves any more: it waits until that is certain, a second and a half.
    """
    context, caller = request.app[CONTEXT], request[CALLER]
    await _mine(request, body.scope, body.target or "", "hold.set")
    if (body.target is None) != (body.scope == "everything"):
        raise Invalid(faults=(("/target", "names the agent or the user; everything has none"),))
    stands = await context.holds.hold(
        hold_id=uuid7.uuid7(),
        scope=body.scope,
        target=body.target or "",
        reason=body.reason,
        by_admin=caller.admin,
        origin=request[ORIGIN],
    )
    await context.authority_changed()
    await asyncio.sleep(CERTAIN_S)
    return json_response(_shape(stands))


async def release(request: web.Request, path: HoldPath) -> web.Response:
    """Let go on what it holds: an admin any; an agent's owner what no admin has held. Again is the same."""
    context, caller = request.app[CONTEXT], request[CALLER]
    found = await context.holds.get(path.hold_id)
    if found is None or not (caller.admin or found.scope == "agent"):
        raise _missing()
    try:
        await _mine(request, found.scope, found.target, "hold.released")
    except NotFound:  # of an agent that they do not see: not even that there is this hold is told
        raise _missing() from None
    released = await context.holds.release(path.hold_id, request[ORIGIN], as_admin=caller.admin)
    if released is None:
        raise _missing()
    if released.released_at is None:
        fault = Forbidden("An admin holds it: only an admin releases it.", code="held_by_admin")
        deed = Deed(action="hold.released", agent_id=found.target, owner=caller.user_id, target=str(found.id))
        refused(request, fault, deed)
    await context.authority_changed()
    return json_response(_shape(released))


async def _mine(request: web.Request, scope: Scope, target: str, action: str) -> None:
    """Raises NotFound or Forbidden unless it is the caller's to hold and to release."""
    if request[CALLER].admin:
        return
    if scope == "agent":
        await owned(request, target, action)
        return
    fault = Forbidden("Only an admin holds users or everything.", code="role_required")
    refused(request, fault, Deed(action=action, target=target, detail={"scope": scope}))


def _missing() -> NotFound:
    return NotFound("There is no such hold, or it is not yours to release.")


def _shape(hold: Hold) -> dict[str, Any]:
    return {
        "hold_id": str(hold.id),
        "scope": hold.scope,
        "target": hold.target or None,
        "reason": hold.reason,
        "held_by": hold.held_by,
        "held_at": moment(hold.held_at),
        "by_admin": hold.by_admin,
        "released_by": hold.released_by,
        "released_at": moment(hold.released_at) if hold.released_at is not None else None,
    }
