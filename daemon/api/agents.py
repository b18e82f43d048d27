"""Agents over HTTP: those that a caller may see, what tools they offer, and whose they are.

Who may see an agent: its owner, whoever it is granted to in any way, and admins. To everybody else it is not there.
"""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn

import orjson
from aiohttp import web
from pydantic import Field

from daemon.api.context import ATTEMPT, CALLER, CONTEXT, ORIGIN
from daemon.api.intake import DIGITS, Body, Flag, Line, Path, Query
from daemon.api.shapes import json_response, moment
from daemon.auth.access import Agent, ground_of, may_view
from daemon.auth.caller import Caller
from daemon.errors import Forbidden, NotFound, RunwardenError
from daemon.store.agents import SeenAgent, TokenVersion
from daemon.store.audit import Deed
from gateway_client import Roster

MOST = 200
UserId = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]


class AgentPath(Path):
    agent_id: Line


class AgentsQuery(Query):
    limit: Annotated[int, Field(ge=1, le=MOST, description="Items of this page."), DIGITS] = 50
    cursor: Annotated[str, Field(max_length=2000, pattern=r"^[A-Za-z0-9_=-]+$")] | None = Field(
        None, description="`next_cursor` of the page before."
    )


class NewBinding(Body):
    """Body of ``PUT …/binding``."""

    owner: UserId
    free_only: Flag = Field(False, description="Refuse, with 409 `agent_taken`, where it is somebody else's now.")


async def listed(request: web.Request, query: AgentsQuery) -> web.Response:
    """The agents that you may see, by id, with what is yours to do and whether they are online.

    While a Gateway is away its agents are ``unknown``. An admin sees all, those that belong to nobody too.
    """
    roster = await request.app[CONTEXT].reach.roster()
    after = _place(query.cursor) if query.cursor is not None else None
    found = await _seen(request, roster, after=after, limit=query.limit + 1)
    items = found[: query.limit]
    more = urlsafe_b64encode(items[-1].agent_id.encode()).decode() if len(found) > query.limit else None
    return json_response({"items": [_shape(one, request[CALLER], roster) for one in items], "next_cursor": more})


async def get(request: web.Request, path: AgentPath) -> web.Response:
    """One agent, as the list shows it."""
    return json_response(await _told(request, path.agent_id))


async def tools(request: web.Request, path: AgentPath) -> web.Response:
    """What the agent offers now, asked of it live: with MCP's annotations and what follows of them and of the policies.

    Traits: ``risk``, ``writes``, ``open_world``, ``idempotent``, ``requires_approval`` (a person's approval before each
    call, whatever the workflow says) and ``denied``.
    """
    context, caller = request.app[CONTEXT], request[CALLER]
    agent, policies = await visible(request, path.agent_id), await context.entitlements.policies()
    now_ms, items = _now_ms(), []
    for tool in await context.reach.tools(path.agent_id):
        ground = ground_of(
            agent,
            tool.name,
            user_id=caller.user_id,
            groups=caller.groups,
            admin=caller.admin,
            now_ms=now_ms,
            policies=policies,
            annotations=tool.annotations,
        )
        traits, barred = ground.traits, ground.barred
        items.append(
            {
                "name": tool.name,
                "description": tool.description,
                "input_schema": _told_again(tool.input_schema),
                "annotations": tool.annotations,
                "risk": traits.risk,
                "writes": traits.writes,
                "open_world": traits.open_world,
                "idempotent": traits.idempotent,
                "requires_approval": traits.requires_approval,
                "denied": traits.denied,
                "may_use": barred is None,
                "refusal": barred.message if barred is not None else None,
            }
        )
    return json_response({"agent_id": path.agent_id, "tools": items})


async def bind(request: web.Request, path: AgentPath, body: NewBinding) -> web.Response:
    """Make somebody its owner: an admin for any agent, its owner for it. Grants stay; the owner's tokens end."""
    context, caller = request.app[CONTEXT], request[CALLER]
    if not caller.admin:
        await owned(request, path.agent_id, "agent.transferred")
    done = await context.agents.bind(
        path.agent_id,
        body.owner,
        request[ORIGIN],
        free_only=body.free_only,
        owned_by=None if caller.admin else caller.user_id,
    )
    if done != "unchanged":
        await context.authority_changed()
    await _tell_versions(request, path.agent_id)
    return json_response({"agent_id": path.agent_id, "owner": body.owner, "outcome": done})


async def unbind(request: web.Request, path: AgentPath) -> web.Response:
    """It is nobody's from now on: only admins can use it. Its grants are gone, its tokens end. Again is the same."""
    context = request.app[CONTEXT]
    was = await context.agents.unbind(path.agent_id, request[ORIGIN])
    if was is not None:
        await context.authority_changed()
    await _tell_versions(request, path.agent_id)
    return json_response(
        {"agent_id": path.agent_id, "owner": None, "outcome": "unbound" if was is not None else "unchanged"}
    )


async def visible(request: web.Request, agent_id: str) -> Agent:
    """The agent, with the grants to the caller. Raises NotFound where it is none of theirs to see."""
    context, caller = request.app[CONTEXT], request[CALLER]
    agent = (await context.entitlements.of([agent_id], caller.subjects))[agent_id]
    if not may_view(agent, caller, _now_ms()):
        raise missing()
    return agent


async def owned(request: web.Request, agent_id: str, action: str) -> None:
    """Raises NotFound, or Forbidden (which the audit keeps), unless it is theirs or they are an admin."""
    agent, caller = await visible(request, agent_id), request[CALLER]
    if not caller.admin and agent.owner != caller.user_id:
        fault = Forbidden("Only the agent's owner or an admin may do this.", code="not_the_owner")
        refused(request, fault, Deed(action=action, agent_id=agent_id, owner=agent.owner))


def refused(request: web.Request, fault: RunwardenError, deed: Deed) -> NoReturn:
    """Raise the fault; the gate writes into the audit what was attempted."""
    request[ATTEMPT] = deed
    raise fault


def missing() -> NotFound:
    """There is none, or none that they may see."""
    return NotFound("There is no such agent, or it is not yours to see.")


async def _told(request: web.Request, agent_id: str) -> dict[str, Any]:
    roster = await request.app[CONTEXT].reach.roster()
    found = await _seen(request, roster, only=agent_id)
    if not found:
        raise missing()
    return _shape(found[0], request[CALLER], roster)


async def _seen(request: web.Request, roster: Roster, **which: Any) -> list[SeenAgent]:
    caller = request[CALLER]
    connected = [one for one in roster.agents if 0 < len(one) <= 255 and "\x00" not in one] if caller.admin else []
    return await request.app[CONTEXT].agents.seen(
        user_id=caller.user_id, subjects=caller.subjects, everything=caller.admin, connected=connected, **which
    )


async def _tell_versions(request: web.Request, agent_id: str) -> None:
    """Tokens of owners before this one are good no more: the Gateways are told now, or again by the mirror."""
    context = request.app[CONTEXT]
    for known in await context.agents.versions_of(agent_id):
        await context.reach.accept(TokenVersion(*known))


def _shape(agent: SeenAgent, caller: Caller, roster: Roster) -> dict[str, Any]:
    seen = roster.last_seen_at(agent.agent_id)
    may = {*agent.permissions, *(("owner",) if agent.owner == caller.user_id else ())}
    if caller.admin:
        may |= {"view"} if agent.owner is not None else {"use", "view"}
    return {
        "agent_id": agent.agent_id,
        "owner": agent.owner,
        "bound_at": moment(agent.bound_at) if agent.bound_at is not None else None,
        "may": sorted(may),
        "online": roster.state(agent.agent_id),
        "last_seen_at": moment(datetime.fromtimestamp(seen, UTC)) if seen is not None and 0 < seen < 2**33 else None,
        "held": agent.held is not None,
        "held_reason": agent.held,
    }


def _told_again(schema: dict[str, Any]) -> orjson.Fragment:
    """An agent's own text: what is nested deeper than can be told again is left out, and does not fail the rest."""
    try:
        return orjson.Fragment(orjson.dumps(schema))
    except orjson.JSONEncodeError:
        return orjson.Fragment(b"{}")


def _place(cursor: str) -> str:
    """The id that a cursor names; whatever else it is, it is some place."""
    try:
        return urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("utf-8", "replace").replace("\x00", "")
    except ValueError:
        return ""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
