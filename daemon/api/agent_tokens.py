"""Tokens of agents: what an agent shows the Gateway to be let in. The first to ask for a new id owns the agent."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated

from aiohttp import web
from pydantic import Field

from daemon.api.agents import refused
from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.intake import Body
from daemon.api.shapes import json_response, moment
from daemon.auth.agent_tokens import AGENT_ID, agent_token, new_agent_id
from daemon.errors import Conflict, WorldError
from daemon.store.agents import TokenVersion
from daemon.store.audit import Deed

AgentId = Annotated[str, Field(pattern=f"^{AGENT_ID.pattern}$")]


class TokenWanted(Body):
    """Body of ``POST /v1/bridge/agent-token``."""

    agent_id: AgentId | None = Field(None, description="A new id, or one of your own agents; unset: one is made.")
    reset: bool = Field(False, description="Every older token of the agent ends: at its next connection, not before.")


async def mint(request: web.Request, body: TokenWanted) -> web.Response:
    """A token for an agent to show the Gateway. A new id becomes yours by it; one that is taken is 409.

    Each token is good until ``expires_at`` or until the next ``reset``; asking again ends none.
    """
    context, caller = request.app[CONTEXT], request[CALLER]
    secret = context.gateway.agent_token_secret.get_secret_value()
    if not secret:
        raise Conflict(
            "This node makes no tokens for agents: set RUNWARDEN_AGENT_TOKEN_SECRET to the Gateway's.",
            code="agent_tokens_off",
        )
    agent_id = body.agent_id or new_agent_id()
    if body.agent_id is not None:
        await _new_or_bound(request, agent_id)
    try:
        version, first = await context.agents.mint(agent_id, caller.user_id, request[ORIGIN], reset=body.reset)
    except Conflict as fault:
        refused(request, fault, Deed(action="agent_token.minted", agent_id=agent_id))
    if first:
        await context.authority_changed()
    version = await _accepted(request, agent_id, version)
    issued_at = int(time.time())
    expires_at = issued_at + context.gateway.agent_token_ttl_s
    token = agent_token(
        agent_id,
        owner=caller.user_id,
        version=version,
        secret=secret,
        issuer=context.gateway.agent_token_issuer,
        issued_at=issued_at,
        expires_at=expires_at,
    )
    told = {
        "agent_id": agent_id,
        "token": token,
        "expires_at": moment(datetime.fromtimestamp(expires_at, UTC)),
        "version": version,
        "reset": body.reset,
    }
    return json_response(told, headers={"Cache-Control": "no-store"})


async def _new_or_bound(request: web.Request, agent_id: str) -> None:
    """Nobody but an admin takes an agent that runs and was never bound by naming its id: raises Conflict.

    Nor while no Gateway can say whether one runs: raises WorldError.
    """
    context, caller = request.app[CONTEXT], request[CALLER]
    known = (await context.entitlements.of([agent_id], ()))[agent_id]
    if known.owner is not None or caller.admin:
        return
    roster = await context.reach.roster()
    if agent_id not in roster.agents and roster.deaf:
        raise WorldError(
            f"Whether {agent_id!r} is a new id cannot be told while the Gateway is away: ask again, or name none.",
            code="gateway_unavailable",
        )
    if agent_id in roster.agents:
        fault = Conflict(
            f"An agent {agent_id!r} is connected and belongs to nobody: an admin must bind it.", code="agent_taken"
        )
        refused(request, fault, Deed(action="agent_token.minted", agent_id=agent_id))


async def _accepted(request: web.Request, agent_id: str, version: int) -> int:
    """The version that the Gateways accept, once they know of ours. Raises WorldError, and then it can be repeated."""
    context, user_id = request.app[CONTEXT], request[CALLER].user_id
    stands = await context.reach.accept(TokenVersion(user_id, agent_id, version))
    if stands > version:  # they were told of a later one: by a reset meanwhile, or before a restore of ours
        await context.agents.follow_version(agent_id, user_id, stands)
    return stands
