"""What a request says, read by the models that declare it: path, query, headers and body. Used by ``contract``.

Handlers take such models as arguments and read nothing by themselves; ``openapi`` tells the world of the same models.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from itertools import islice
from typing import Annotated, Any, TypeVar
from uuid import UUID

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from daemon.api.context import CONTEXT
from daemon.errors import BadRequest, Invalid, NotFound, TooSlow
from daemon.faults import MAX_FAULTS, escape, faults_of

MAX_DEPTH = 200
"""Bodies nested deeper are refused: pydantic and orjson read deeper than they can write (254)."""
_MANY_DIGITS = re.compile(rb"\d{19}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_PLUS_LOST = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)? \d\d:\d\d", re.ASCII)
_TWICE = "stands there more than once: say it once"

_M = TypeVar("_M", bound=BaseModel)


class Path(BaseModel):
    """Base of what stands in a path; what does not fit is a resource that is not there."""

    model_config = ConfigDict(extra="forbid")


class Query(BaseModel):
    """Base of a query. What nobody knows is refused: a misspelt filter must not mean everything."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Headers(BaseModel):
    """Base of the headers that a handler reads; each field's alias is the header's name."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Body(BaseModel):
    """Base of a body: exact types. Unknown fields beside v0's are ignored, as v0 did."""

    model_config = ConfigDict(extra="ignore", strict=True)


def _whole(said: object) -> object:
    if isinstance(said, str):
        if not said.isascii() or not said.isdigit() or len(said) > 18:
            raise ValueError("must be a whole number of at least 0")
        return int(said)
    return said


def _flag(said: object) -> object:
    return {"true": True, "false": False}.get(said, said) if isinstance(said, str) else said


def _moment(said: object) -> object:
    """The moment as Postgres is told it; in its first and last hours a year of four digits may have none in UTC."""
    if isinstance(said, str) and _PLUS_LOST.fullmatch(said):
        raise ValueError("a + in a query is a blank: write it as %2B, or the time with Z")
    if not isinstance(said, str) or not _RFC3339.fullmatch(said):
        raise ValueError("must be a time as RFC 3339 has it, with its zone: 2026-01-31T12:00:00Z")
    try:
        return datetime.fromisoformat(said.upper()).astimezone(UTC)
    except OverflowError:
        raise ValueError("no such moment in UTC") from None


def _id(said: object) -> UUID:
    if isinstance(said, UUID):
        return said
    try:
        return UUID(said if isinstance(said, str) else "")
    except ValueError:
        raise ValueError("must be a UUID") from None


DIGITS = BeforeValidator(_whole)
"""A number of a query or a header is digits and nothing else. After its bounds, or the document lacks them."""
Whole = Annotated[int, Field(ge=0, le=2**53 - 1), DIGITS]
Flag = Annotated[bool, BeforeValidator(_flag)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
Id = Annotated[UUID, BeforeValidator(_id)]
Line = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]*$")]
"""Text of a query."""


def read_path(request: web.Request, model: type[_M]) -> _M:
    """The ids of the path. Raises NotFound for what is no UUID: there can be no such resource."""
    try:
        return model.model_validate(dict(request.match_info))
    except ValidationError:
        raise NotFound from None


def read_query(request: web.Request, model: type[_M]) -> _M:
    """The query; what is a list may be said several times. Raises Invalid."""
    lists, strict = _lists(model), model.model_config.get("extra") == "forbid"
    said: dict[str, Any] = {}
    for name in request.query:
        told = request.query.getall(name)
        if strict and len(told) > 1 and name in model.model_fields and name not in lists:
            raise Invalid(faults=((name, _TWICE),), code="invalid_parameter")
        said[name] = told if name in lists else told[0]
    return _parameters(model, said)


def read_headers(request: web.Request, model: type[_M]) -> _M:
    """The declared headers, each at most once: nobody knows which of two was meant. Raises Invalid."""
    said: dict[str, Any] = {}
    for name in [field.alias or name for name, field in model.model_fields.items()]:
        told = request.headers.getall(name, [])
        if len(told) > 1:
            raise Invalid(faults=((name, _TWICE),), code="invalid_parameter")
        if told:
            said[name] = told[0]
    return _parameters(model, said)


async def read_body(request: web.Request, model: type[_M]) -> _M:
    """The body as ``model``; one that asks for nothing may be left out. Raises Invalid, with a pointer each."""
    said = await read_json(request, optional=not any(field.is_required() for field in model.model_fields.values()))
    try:
        return model.model_validate(said)
    except ValidationError as fault:
        faults = faults_of(fault, model)
        of_spec = all(path.startswith("/spec/") for path, _ in faults)
        raise Invalid(faults=faults, code="invalid_spec" if of_spec else None) from None


def _parameters(model: type[_M], said: Mapping[str, Any]) -> _M:
    try:
        return model.model_validate(said)
    except ValidationError as fault:
        faults = tuple((path.removeprefix("/"), why) for path, why in faults_of(fault, model))
        raise Invalid(faults=faults, code="invalid_parameter") from None


@cache
def _lists(model: type[BaseModel]) -> frozenset[str]:
    """The parameters that may be repeated."""
    properties = model.model_json_schema()["properties"]
    kinds = {name: [shape, *shape.get("anyOf", ())] for name, shape in properties.items()}
    return frozenset(name for name, some in kinds.items() if any(kind.get("type") == "array" for kind in some))


async def read_json(request: web.Request, *, optional: bool = False) -> dict[str, Any]:
    """The body as a JSON object that can be stored and told again as it came.

    Raises BadRequest, Invalid, TooLarge, TooSlow.

    Refused beside what is no JSON: NUL characters (Postgres), integers beyond 64 bits (they would be rounded) and
    nesting that we could read but not write.
    """
    try:
        async with asyncio.timeout(limit_s := request.app[CONTEXT].settings.body_timeout_s):
            raw = await request.read()
    except TimeoutError:
        raise TooSlow(f"The body did not come whole within {limit_s:g} s: send the request again.") from None
    except web.RequestPayloadError as fault:
        raise BadRequest(f"The body is not what its headers say: {_why(fault)}.") from None
    if not raw:
        if optional:
            return {}
        raise Invalid("There is no body: send a JSON object.", code="malformed_json")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as fault:
        raise Invalid(f"The body is not JSON: {fault}.", code="malformed_json") from None
    if not isinstance(body, dict):
        raise Invalid("The body must be a JSON object.")
    if b"\\u0000" in raw or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        faults = tuple(islice(_unkept(body, "", 1), MAX_FAULTS))
        if faults:
            raise Invalid(faults=faults)
    if _MANY_DIGITS.search(raw):
        json.loads(raw, parse_int=_exact)
    return body


def _why(fault: web.RequestPayloadError) -> str:
    """What aiohttp found, in its words without its number."""
    found = fault.__cause__
    return (found.message if isinstance(found, HttpProcessingError) else str(found or fault)).rstrip(".")


def _unkept(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """What of a JSON value cannot be kept: (JSON pointer, why) of each fault."""
    match value:
        case str() if "\x00" in value:
            yield path or "/", "NUL characters cannot be stored"
        case list() | dict() if depth > MAX_DEPTH:
            yield path, f"nested deeper than {MAX_DEPTH}"
        case list():
            for index, item in enumerate(value):
                yield from _unkept(item, f"{path}/{index}", depth + 1)
        case dict():
            for key, item in value.items():
                if "\x00" in key:
                    yield path or "/", "NUL characters cannot be stored"
                yield from _unkept(item, f"{path}/{escape(key)}", depth + 1)
        case _:
            pass


def _exact(digits: str) -> int:
    """An integer of a body, if 64 bits hold it; orjson would make a float of any other."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise Invalid(f"The number {digits[:40]} is beyond 64 bits and would be rounded: send it as text.")
    return int(digits)
