"""Service tokens over HTTP: made (and shown once), listed, revoked. Each speaks for its user, within its scopes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import uuid_utils.compat as uuid7
from aiohttp import web
from pydantic import ConfigDict, Field

from daemon.api.context import CALLER, CONTEXT, ORIGIN
from daemon.api.intake import Body, Flag, Id, Moment, Path
from daemon.api.pages import PageQuery, page
from daemon.api.repeats import Repeatable, once
from daemon.api.shapes import json_response, moment
from daemon.auth.caller import Caller, Role
from daemon.auth.claims import MAX_SUBJECT
from daemon.auth.service_tokens import check_maker, digest_of, new_token, token_id_of
from daemon.errors import Conflict, Forbidden, Invalid, NotFound
from daemon.store.once import Repeated
from daemon.store.service_tokens import ServiceToken
from daemon.store.workflows import Place


class ServiceTokenPath(Path):
    token_id: Id


class NewServiceToken(Body):
    """Body of ``POST /v1/service-tokens``. What nobody knows is refused: a misspelt end would mean none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=255)] = Field(description="What it is for, to tell it by.")
    scopes: Annotated[list[Role], Field(min_length=1, max_length=16)] = Field(
        description="The roles that it gives; none that you have not."
    )
    expires_at: Moment | None = Field(
        None, description="A moment to come; without it the token is good until it is revoked."
    )
    user_id: Annotated[str, Field(min_length=1, max_length=MAX_SUBJECT)] | None = Field(
        None, description="Whom it speaks for, if not you; for admins. It then has no groups."
    )


class ServiceTokensQuery(PageQuery):
    all: Flag = Field(False, description="Everybody's; for admins.")


async def create(request: web.Request, headers: Repeatable, body: NewServiceToken) -> web.Response:
    """Make a service token: the answer is the only one that ever shows it.

    With an `Idempotency-Key` a request that is sent again makes no other and shows none: it is 409
    `token_already_made`, which names in `Location` the token that was made. Without one it makes another.
    """
    caller, user_id = request[CALLER], body.user_id or request[CALLER].user_id
    check_maker(caller, user_id=user_id, scopes=body.scopes)
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise Invalid(faults=(("/expires_at", "is over: say a moment to come"),))
    token, token_id = new_token(), uuid7.uuid7()
    digest = digest_of(token)
    assert digest is not None  # noqa: S101 - it has the form that it was made in
    try:
        made = await request.app[CONTEXT].service_tokens.add(
            token_id=token_id,
            digest=digest,
            user_id=user_id,
            name=body.name,
            scopes=frozenset(body.scopes),
            groups=caller.groups if user_id == caller.user_id else (),
            expires_at=body.expires_at,
            origin=request[ORIGIN],
            once=once(request, headers, body, str(token_id)),
        )
    except Repeated as first:
        raise _already_made(request, first.made) from None
    return json_response({"token": token} | _shape(made), headers={"Cache-Control": "no-store"})


async def listed(request: web.Request, query: ServiceTokensQuery) -> web.Response:
    """Your service tokens, newest first, the revoked and the expired too."""
    caller = request[CALLER]
    if query.all:
        caller.require("admin")
    found = await request.app[CONTEXT].service_tokens.listed(
        user_id=None if query.all else caller.user_id, after=query.place, limit=query.limit + 1
    )
    return page(found, query, _shape, lambda token: Place(token.made_at, token.id))


async def get(request: web.Request, path: ServiceTokenPath) -> web.Response:
    """A service token of yours; admins see everybody's."""
    found = await request.app[CONTEXT].service_tokens.get(path.token_id, user_id=_whose(request[CALLER]))
    return _answer(found)


async def revoke(request: web.Request, path: ServiceTokenPath) -> web.Response:
    """Revoke a service token of yours; admins may revoke any. It opens nothing from now on; again is the same."""
    caller = request[CALLER]
    if caller.via is not None and token_id_of(caller.via) != path.token_id:
        raise Forbidden("A service token may revoke itself and no other.", code="not_by_service_token")
    revoked = await request.app[CONTEXT].service_tokens.revoke(
        path.token_id, user_id=_whose(caller), origin=request[ORIGIN]
    )
    return _answer(revoked)


def _already_made(request: web.Request, token_id: str) -> Conflict:
    """The secret is kept nowhere, so a repeat cannot have the answer that the first one had."""
    return Conflict(
        f"This request made the service token {token_id} already, and a token is shown once. If that answer was lost,"
        " revoke it, and make another with a new Idempotency-Key.",
        code="token_already_made",
        location=f"{request.path}/{token_id}",
    )


def _whose(caller: Caller) -> str | None:
    return None if caller.admin else caller.user_id


def _answer(found: ServiceToken | None) -> web.Response:
    if found is None:
        raise NotFound("There is no such service token, or it is not yours.")
    return json_response(_shape(found))


def _shape(token: ServiceToken) -> dict[str, Any]:
    return {
        "token_id": str(token.id),
        "user_id": token.user_id,
        "name": token.name,
        "scopes": token.scopes,
        "groups": token.groups,
        "made_by": token.made_by,
        "made_at": moment(token.made_at),
        "expires_at": _moment(token.expires_at),
        "last_used_at": _moment(token.last_used_at),
        "revoked_at": _moment(token.revoked_at),
        "revoked_by": token.revoked_by,
    }


def _moment(at: datetime | None) -> str | None:
    return None if at is None else moment(at)
