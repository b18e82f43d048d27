"""``Idempotency-Key`` at the edge: what a request is told apart by. The store keeps keys and effects together."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import orjson
from aiohttp import web
from pydantic import BaseModel, Field

from daemon.api.context import CALLER
from daemon.api.intake import Headers
from daemon.store.once import Once


class Repeatable(Headers):
    """Headers of a POST that may be sent again."""

    idempotency_key: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[!-~]+$")] | None = Field(
        None,
        alias="Idempotency-Key",
        description="Of your own choice, one for each new request: sent again within 24 hours it has no second effect"
        " and gets the same answer; with another body it is 422 `idempotency_key_reused`.",
    )


def once(request: web.Request, headers: Repeatable, body: BaseModel, made: Any) -> Once | None:
    """The request as one that is done once, if it has a key; ``made`` (JSON) is what a repeat will find."""
    if headers.idempotency_key is None:
        return None
    resource = request.match_info.route.resource
    said = orjson.dumps([request.path, body.model_dump(mode="json")], option=orjson.OPT_SORT_KEYS)
    return Once(
        user_id=request[CALLER].user_id,
        route=f"{request.method} {resource.canonical if resource is not None else request.path}",
        key=headers.idempotency_key,
        digest=hashlib.sha256(said).digest(),
        made=made,
    )
